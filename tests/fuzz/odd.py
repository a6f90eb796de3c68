"""Odd values and damage, drawn from a seed: numbers, texts, bytes, trees of JSON. Knows no format of ours."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    2**15,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "\0",
    "x" * 5_000,
    "\u202e\u0301\u200d\ufeff",
    "\u2028",
    "é" * 300,
    "\n\nHuman: a\n\nAssistant: b",
    "../../etc/passwd",
    "{{ 7 * 7 }}",
    "<script>alert(1)</script>",
    "<|end|><|assistant|><|pad|>",
    "' OR 1=1 --",
    "9" * 5_000,
    "nan",
    "-1",
    "\x7f\x1b[2J",
    "((((((((((((a" * 30,
    "a.b.c",
    "%s%n{0}",
)
BLOBS = (b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\0" * 4_096, b"\xff" * 17)
UNKNOWN = "a_field_of_the_future"


def integer(rng: Random, low: int = -(2**63), high: int = 2**64 - 1) -> int:
    """An integer within the bounds, most often at an edge."""
    edges = [value for value in (*INTEGERS, 2**64 - 1, low, high) if low <= value <= high]
    return rng.choice(edges) if rng.random() < 0.8 else rng.randint(low, high)


def number(rng: Random) -> float:
    """A float, most often one that arithmetic does not like."""
    return rng.choice(FLOATS) if rng.random() < 0.7 else rng.uniform(-10, 10)


def text(rng: Random) -> str:
    """Text that UTF-8 can write."""
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    lengths = range(rng.randrange(40))
    return "".join(chr(rng.choice((rng.randrange(1, 128), rng.randrange(160, 0xD800)))) for _ in lengths)


def blob(rng: Random) -> bytes:
    """Bytes."""
    return rng.choice(BLOBS) if rng.random() < 0.5 else rng.randbytes(rng.randrange(64))


# ---------------------------------------------------------------- bytes


def damaged(rng: Random, data: bytes) -> bytes:
    """The bytes with one to four injuries: flipped, cut, doubled, cut out, filled, put in, overwritten by a number."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _injured(rng, data)
    return data


def _injured(rng: Random, data: bytes) -> bytes:
    if not data:
        return blob(rng)
    at = rng.randrange(len(data))
    span = rng.choice((1, 1, 2, 4, 8, 64, max(1, len(data) // 2)))
    how = rng.randrange(8)
    if how == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + data[at : at + span] * rng.choice((2, 3, 50)) + data[at + span :]
    if how == 3:
        return data[:at] + data[at + span :]
    if how == 4:
        return data[:at] + bytes([rng.choice((0, 255))]) * span + data[at + span :]
    if how == 5:
        return data[:at] + blob(rng) + data[at:]
    if how == 6:
        packed = struct.pack(rng.choice(("<Q", "<I", ">Q", "<H")), _edge(rng))
        return data[:at] + packed + data[at + len(packed) :]
    return data[at:] + data[:at]


def _edge(rng: Random) -> int:
    return rng.choice((0, 1, 0xFFFF, 0x7FFF, 0x8000))


# ---------------------------------------------------------------- trees


def leaf(rng: Random, texts: Sequence[str] = ()) -> Any:
    """A value of JSON without much inside."""
    kind = rng.randrange(8)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind == 2:
        return integer(rng)
    if kind == 3:
        return number(rng)
    if kind == 4:
        return rng.choice(([], {}, [[]], [{}], {"": None}, [None], [1, "a", None]))
    return rng.choice(texts) if texts and rng.random() < 0.5 else text(rng)


def changed(rng: Random, tree: Any, texts: Sequence[str] = ()) -> Any:
    """A copy of the tree with one to four changes: values, types, fields lost, doubled, unknown, swapped, nested."""
    tree = _copied(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _altered(rng, tree, texts)
    return tree


def _altered(rng: Random, tree: Any, texts: Sequence[str]) -> Any:
    places = list(_places(tree))
    if not places:
        return leaf(rng, texts)
    inside, key = rng.choice(places)
    how = rng.randrange(7)
    if how == 0:
        del inside[key]
    elif how == 1:
        _added(rng, inside, _copied(inside[key]), texts)
    elif how == 2:
        other, name = rng.choice(places)
        inside[key] = _copied(other[name])
    elif how == 3:
        inside[key] = [inside[key]] if rng.random() < 0.5 else {UNKNOWN: inside[key]}
    elif how == 4 and isinstance(inside[key], str):
        inside[key] = damaged(rng, inside[key].encode("utf-8", "replace")).decode("utf-8", "replace")
    else:
        inside[key] = leaf(rng, texts)
    return tree


def _added(rng: Random, inside: Any, value: Any, texts: Sequence[str]) -> None:
    if isinstance(inside, list):
        inside.extend([value] * rng.choice((1, 1, 40)))
    else:
        inside[UNKNOWN if rng.random() < 0.5 else text(rng)] = leaf(rng, texts)


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for name in tree:
            yield tree, name
            yield from _places(tree[name])
    elif isinstance(tree, list):
        for at, one in enumerate(tree):
            yield tree, at
            yield from _places(one)


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _copied(value) for name, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree
