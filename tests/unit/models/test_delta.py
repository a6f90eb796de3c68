"""The delta codec: what goes in comes out, bit by bit; what cannot be right is refused; it is as small as it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Corrupted
from services.models import delta

SIZES = [700, 1, 3000]
TOTAL = sum(SIZES)


def versions(seed: int, share: float, *, near: float = 0.9, count: int = 2) -> list[list[delta.Bits]]:
    """Versions in a row of three tensors, uint16, uint32 and uint16; most changes are of 1 up or down."""
    rng = np.random.default_rng(seed)
    widths = (np.uint16, np.uint32, np.uint16)
    rows = [[rng.integers(0, 2**16, size).astype(kind) for size, kind in zip(SIZES, widths, strict=True)]]
    for _ in range(count - 1):
        rows.append([bits.copy() for bits in rows[-1]])
        for bits in rows[-1]:
            chosen = np.flatnonzero(rng.random(len(bits)) < share)
            small = rng.choice([-1, 1], len(chosen))
            large = rng.integers(-(2**31), 2**31, len(chosen))
            bits[chosen] += np.where(rng.random(len(chosen)) < near, small, large).astype(bits.dtype)
    return rows


def between(old: list[delta.Bits], new: list[delta.Bits]) -> delta.Changes:
    return delta.joined([delta.difference(a, b) for a, b in zip(old, new, strict=True)], SIZES)


def brought(old: list[delta.Bits], changes: delta.Changes) -> list[delta.Bits]:
    fresh = [bits.copy() for bits in old]
    for bits, part in zip(fresh, changes.split(SIZES), strict=True):
        delta.apply(bits, part)
    return fresh


def same(one: list[delta.Bits], other: list[delta.Bits]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.9, 1.0]))
def test_there_and_back(seed: int, share: float, near: float) -> None:
    """Whatever changed, in tensors of two widths: the old bits and the bytes give the new bits exactly."""
    old, new = versions(seed, share, near=near)
    changes = delta.decoded(delta.encoded(between(old, new), TOTAL), TOTAL)
    assert same(brought(old, changes), new)


def test_sections_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes than one section holds."""
    monkeypatch.setattr(delta, "SECTION", 37)
    old, new = versions(1, 0.3)
    changes = delta.decoded(delta.encoded(between(old, new), TOTAL), TOTAL)
    assert len(changes) > 37 * 10
    assert same(brought(old, changes), new)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.02, 0.6]))
def test_deltas_in_a_row_are_one(seed: int, share: float) -> None:
    """Composed they lead from the first version to the last, and back to the first they are nothing."""
    one, two, three = versions(seed, share, count=3)
    assert same(brought(one, delta.composed(between(one, two), between(two, three))), three)
    assert len(delta.composed(between(one, two), between(two, one))) == 0


def test_half_the_range_and_back_is_nothing() -> None:
    """The one difference that is its own opposite cancels all the same."""
    low, high = np.array([0], np.uint16), np.array([1 << 15], np.uint16)
    there, back = delta.difference(low, high), delta.difference(high, low)
    assert len(delta.composed(there, back)) == len(delta.composed(back, there)) == 0
    for bits, changes, wanted in ((low.copy(), there, high), (high.copy(), back, low)):
        delta.apply(bits, delta.decoded(delta.encoded(changes, 1), 1))
        assert bits == wanted


def test_the_nearest_neighbour_costs_little_more_than_its_entropy() -> None:
    """A percent of a million elements changed by one step up or down: within 5 % of positions plus signs."""
    rng = np.random.default_rng(3)
    old = rng.integers(0, 2**16, 1_000_000).astype(np.uint16)
    new, chosen = old.copy(), np.flatnonzero(rng.random(len(old)) < 0.01)
    new[chosen] += rng.choice(np.array([1, 65535], np.uint16), len(chosen))
    share = len(chosen) / len(old)
    positions = -len(old) * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    size = len(delta.encoded(delta.difference(old, new), len(old)))
    assert 0.98 < size * 8 / (positions + len(chosen)) < 1.05


def test_nothing_changed_is_a_header() -> None:
    """An empty delta is a few bytes and decodes to nothing."""
    data = delta.encoded(delta.UNCHANGED, TOTAL)
    assert len(data) < 32
    assert len(delta.decoded(data, TOTAL)) == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_refused_or_does_no_harm(data: st.DataObject) -> None:
    """Flipped, cut or added bytes: Corrupted, or changes within the tensors, whose digests are checked later."""
    old, new = versions(5, 0.2)
    good = delta.encoded(between(old, new), TOTAL)
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "add"]))
    bad = bytearray(good)
    if kind == "flip":
        bad[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[at:]
    else:
        bad[at:at] = b"\x00"
    try:
        changes = delta.decoded(bytes(bad), TOTAL)
    except Corrupted:
        return
    assert kind == "flip"
    assert len(changes) == 0 or (changes.positions[0] >= 0 and changes.positions[-1] < TOTAL)
    brought(old, changes)


@pytest.mark.parametrize(
    ("bad", "total"),
    [(b"", TOTAL), (b"TTD1", TOTAL), (b"XXXX" + bytes(16), TOTAL), (None, TOTAL + 1)],
    ids=["empty", "short", "other coding", "other tensors"],
)
def test_what_is_no_delta_of_these_tensors_is_refused(bad: bytes | None, total: int) -> None:
    """Another model's, another coding's, or no delta at all."""
    old, new = versions(6, 0.1)
    with pytest.raises(Corrupted):
        delta.decoded(bad if bad is not None else delta.encoded(between(old, new), TOTAL), total)


def test_a_stream_that_would_fill_the_memory_is_refused() -> None:
    """A frame that claims more bytes than its changes can need is not unpacked."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    data = delta._HEADER.pack(b"TTD1", TOTAL, 1) + delta._SECTION.pack(len(bomb), 0, 0) + bomb
    with pytest.raises(Corrupted, match="at most"):
        delta.decoded(data, TOTAL)


def test_positions_past_the_end_are_refused() -> None:
    """Also where a tensor is named one by one."""
    changes = delta.Changes(np.array([0, 9]), np.ones(2, np.int32))
    with pytest.raises(Corrupted, match="element 9 of a tensor of 9"):
        delta.apply(np.zeros(9, np.uint16), changes)
