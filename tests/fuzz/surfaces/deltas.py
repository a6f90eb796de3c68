"""The delta decoder: flipped and cut bytes, sections that say too much, streams that compress but make no sense.

A delta is Corrupted, or it leads to the very tensors that the manifest names; never to other ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch
import zstandard

from services.common.errors import Corrupted
from services.models import delta
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.models.snapshot_delta import bits_of, brought_up, decoded_delta, encoded_delta, tensor_changes
from tests.fuzz import odd
from tests.fuzz.surface import Surface, documented

_HEADER, _SECTION = struct.Struct("<4sQQ"), struct.Struct("<III")
_COUNTS = (0, 1, 2, 7, 255, 2**16, 2**20, 2**20 + 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Two versions of three tensors, and the delta between them."""
    generator = torch.Generator().manual_seed(1)
    old = {
        "a": torch.randn(40, 30, generator=generator).to(torch.bfloat16),
        "b": torch.randn(2000, generator=generator),
        "c": torch.randn(0, 4, generator=generator),
    }
    new = {name: _nudged(tensor, generator) for name, tensor in old.items()}
    entries = entries_of(new)
    manifest = Manifest(Version(1, 2, whole_digest(entries)), entries)
    sound = encoded_delta({name: tensor_changes(old[name], new[name]) for name in old}, manifest)
    elements = sum(tensor.numel() for tensor in old.values())

    def brought(data: bytes) -> None:
        changed = decoded_delta(data, manifest)
        for entry, changes in changed:
            assert (changes.positions >= 0).all(), "a position before the tensor"
            assert (changes.positions[1:] > changes.positions[:-1]).all(), "a position twice"
            made = brought_up(entry, old[entry.name], changes)
            assert torch.equal(bits(made), bits(new[entry.name])), "a wrong tensor"
        missing = {entry.name for entry in entries} - {entry.name for entry, _ in changed}
        # Whole digests are the reader's to check: a delta may leave out what it should have brought.
        assert all(name in old for name in missing)

    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(bits_of(tensor).view(f"i{tensor.element_size()}"))

    def run(data: bytes) -> str:
        return documented(lambda: brought(data), Corrupted)

    def good() -> None:
        assert run(sound) == "accepted"

    good()
    yield Surface(lambda rng: _drawn(rng, sound, elements), run, good, peak_mib=64)


def _nudged(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    chosen = torch.rand(tensor.shape, generator=generator) < 0.05
    return torch.where(chosen, tensor * 1.01 + 0.001, tensor).to(tensor.dtype)


def _drawn(rng: Random, sound: bytes, elements: int) -> bytes:
    how = rng.random()
    if how < 0.4:
        return odd.damaged(rng, sound)
    magic, claimed, count = _HEADER.unpack_from(sound)
    if how < 0.55:
        claimed = claimed if rng.random() < 0.7 else rng.choice(_COUNTS)
        return (
            _HEADER.pack(magic, claimed, rng.choice((*_COUNTS, elements, elements + 1)))
            + sound[_HEADER.size :]
        )
    streams = _streams(sound)
    which = rng.randrange(3)
    streams[which] = odd.damaged(rng, streams[which])
    if rng.random() < 0.3:
        count = rng.choice((count - 1, count + 1, 0, 1, elements))
    packed = [_compressed(rng, stream) for stream in streams]
    lengths = [rng.choice(_COUNTS) & 0xFFFFFFFF if rng.random() < 0.05 else len(one) for one in packed]
    return _HEADER.pack(magic, claimed, count) + _SECTION.pack(*lengths) + b"".join(packed)


def _streams(sound: bytes) -> list[bytes]:
    """The three streams of a delta of one section, as they were before they were compressed."""
    lengths = _SECTION.unpack_from(sound, _HEADER.size)
    at, found = _HEADER.size + _SECTION.size, []
    for length in lengths:
        found.append(zstandard.ZstdDecompressor().decompress(sound[at : at + length]))
        at += length
    return found


def _compressed(rng: Random, data: bytes) -> bytes:
    """One frame as ours are; now and then a bomb, one without its size, or two."""
    how = rng.randrange(12)
    if how == 0:
        return zstandard.ZstdCompressor().compress(b"\xff" * 2**24)
    if how == 1:
        return zstandard.ZstdCompressor(write_content_size=False).compress(data)
    whole = zstandard.ZstdCompressor(compression_params=delta._CODING).compress(data)
    return whole * 2 if how == 2 else whole
