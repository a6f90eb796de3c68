"""Lossless deltas between two versions of the same tensors, as bytes. Pure: arrays in, bytes out.

    old bits, new bits ──difference──▶ Changes ──encoded──▶ bytes ──decoded──▶ Changes ──apply──▶ new bits
                                        │   ▲
                                        └───┴ composed: two in a row as one

The tensors lie end to end, in manifest order; a change is a position in that row and the difference of the element's
bit patterns (new minus old as integers of its width, wrapping). Neighbouring values of a float type have neighbouring
patterns, so most differences are 1 or -1: one bit, where the new value needs sixteen and xor two.

    bytes:    header, then sections of at most SECTION changes each, which are coded by themselves
    section:  gaps     unsigned distances to the change before, in bytes: 255 stands for "255 and more follows"
              codes    two bits a change: -1, 1, 2 (the smaller half of the rest) or 3; four to a byte
              rare     what codes do not say, zigzag, in planes of bytes
    each stream is one zstd frame that hardly searches for matches: what is won is its Huffman coding.

Geometric gaps stay geometric when 255 is taken away, so this loses nothing but Huffman's rounding: see the README.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from services.common.errors import Corrupted

Bits = npt.NDArray[np.unsignedinteger[Any]]
Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Differences = npt.NDArray[np.int32]

SECTION = 2**20
_MAGIC = b"TTD1"
_HEADER = struct.Struct("<4sQQ")
"""Magic, elements of all tensors, changes."""
_SECTION = struct.Struct("<III")
"""Bytes of the three streams."""
_WIDE = 255
_MORE = np.uint8(_WIDE)
_RARE = 2
_PLANES = 4
_CODING = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=12, enable_ldm=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed elements of tensors that lie end to end: positions [changed] ascending, differences [changed]."""

    positions: Positions
    differences: Differences

    def __len__(self) -> int:
        return len(self.positions)

    def split(self, sizes: Sequence[int]) -> list[Changes]:
        """Each tensor's own changes, positions counted from its first element. `sizes` are elements."""
        ends = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        borders = np.searchsorted(self.positions, ends)
        return [
            Changes(self.positions[first:last] - start, self.differences[first:last])
            for (first, last), start in zip(pairwise(borders), ends, strict=False)
        ]


UNCHANGED = Changes(np.zeros(0, np.int64), np.zeros(0, np.int32))


def difference(old: Bits, new: Bits) -> Changes:
    """What changed in one tensor: its bit patterns before and after, flat, as unsigned integers of its width."""
    positions = np.flatnonzero(old != new)
    before, after = old[positions], new[positions]
    differences = (after - before).view(f"i{old.itemsize}").astype(np.int32)
    # The one number that would be its own opposite: the way back is to cancel the way there.
    half = -(1 << (8 * old.itemsize - 1))
    return Changes(positions, np.where((differences == half) & (after > before), -differences, differences))


def joined(each: Sequence[Changes], sizes: Sequence[int]) -> Changes:
    """Changes of all tensors from those of each, which have `sizes` elements."""
    starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    parts = [
        (one.positions + start, one.differences) for one, start in zip(each, starts, strict=False) if len(one)
    ]
    if not parts:
        return UNCHANGED
    return Changes(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


def apply(bits: Bits, changes: Changes) -> None:
    """Bring one tensor's bit patterns up to date, in place. Raises Corrupted for a position it does not have."""
    positions = changes.positions
    if len(positions) and not 0 <= positions[0] <= positions[-1] < len(bits):
        raise Corrupted(f"a delta names element {positions[-1]} of a tensor of {len(bits)}")
    bits[positions] += changes.differences.astype(bits.dtype)


def composed(first: Changes, second: Changes) -> Changes:
    """Both changes in a row as one; what the second takes back is left out."""
    positions = np.concatenate((first.positions, second.positions))
    differences = np.concatenate((first.differences, second.differences))
    order = np.argsort(positions, kind="stable")
    positions, differences = positions[order], differences[order]
    fresh = np.ones(len(positions), bool)
    fresh[1:] = positions[1:] != positions[:-1]
    starts = np.flatnonzero(fresh)
    if not len(starts):
        return first
    sums = np.add.reduceat(differences, starts, dtype=np.int32)
    kept = sums != 0
    return Changes(positions[starts][kept], sums[kept])


# ---------------------------------------------------------------- bytes


def encoded(changes: Changes, elements: int) -> bytes:
    """The changes as bytes. `elements`: of all tensors."""
    positions = changes.positions
    gaps = np.diff(positions, prepend=-1) - 1
    parts = [_HEADER.pack(_MAGIC, elements, len(changes))]
    for start in range(0, len(changes), SECTION):
        end = start + SECTION
        codes, rare = _coded(changes.differences[start:end])
        streams = [_packed(data) for data in (_gap_bytes(gaps[start:end]), codes, rare)]
        parts += [_SECTION.pack(*map(len, streams)), *streams]
    return b"".join(parts)


def decoded(data: bytes | memoryview, elements: int) -> Changes:
    """The changes that these bytes are. Raises Corrupted for any others, never more memory than they may need."""
    view = memoryview(data)
    try:
        magic, claimed, count = _HEADER.unpack_from(view)
        if magic != _MAGIC or claimed != elements or count > elements:
            raise Corrupted("a delta is of other tensors, or of a coding that is not known here")
        return _decoded(view[_HEADER.size :], elements, count)
    except (struct.error, zstandard.ZstdError, ValueError, IndexError) as error:
        raise Corrupted(f"a delta cannot be read: {error}") from None


def _decoded(view: memoryview, elements: int, count: int) -> Changes:
    positions, differences = np.empty(count, np.int64), np.empty(count, np.int32)
    last = -1
    for start in range(0, count, SECTION):
        here = min(SECTION, count - start)
        lengths = _SECTION.unpack_from(view)
        view = view[_SECTION.size :]
        streams = []
        for length, most in zip(
            lengths, (here + elements // _WIDE, -(-here // 4), here * _PLANES), strict=True
        ):
            streams.append(_unpacked(view[:length], most))
            view = view[length:]
        steps = _positions(streams[0], here)
        positions[start : start + here] = steps + last
        last = int(positions[start + here - 1])
        differences[start : start + here] = _differences(streams[1], streams[2], here)
    if len(view) or last >= elements:
        raise Corrupted("a delta is longer than it says, or names elements that are not there")
    return Changes(positions, differences)


def _gap_bytes(gaps: Positions) -> Bytes:
    """Each gap as bytes of 255 and a last one below."""
    more, rest = np.divmod(gaps, _WIDE)
    data = np.full(len(gaps) + int(more.sum()), _MORE)
    data[np.cumsum(more + 1) - 1] = rest
    return data


def _positions(data: Bytes, count: int) -> Positions:
    """Positions [count] that the gap bytes lead to from the one before the first."""
    ends = np.flatnonzero(data != _MORE)
    if len(ends) != count or (count and ends[-1] != len(data) - 1):
        raise Corrupted(f"a delta has {len(ends)} gaps for {count} changes")
    # A last byte is its value and the changed element itself; 255 is 255.
    return np.cumsum(data + (data != _MORE), dtype=np.int64)[ends]


def _coded(differences: Differences) -> tuple[Bytes, Bytes]:
    """Two bits a change, and what they do not say."""
    zigzag = ((differences << 1) ^ (differences >> 31)).view(np.uint32) - np.uint32(1)
    codes = np.minimum(zigzag, _RARE).astype(np.uint8)
    rare = zigzag[codes == _RARE] - np.uint32(_RARE)
    padded = np.zeros(-(-len(codes) // 4) * 4, np.uint8)
    padded[: len(codes)] = codes
    quads = padded.reshape(-1, 4)
    packed = quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6
    planes = rare.astype("<u4").view(np.uint8).reshape(-1, _PLANES).T
    return packed.astype(np.uint8), np.ascontiguousarray(planes, np.uint8).reshape(-1)


def _differences(packed: Bytes, planes: Bytes, count: int) -> Differences:
    quads = np.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], axis=1)
    codes = quads.reshape(-1)[:count]
    zigzag = codes.astype(np.uint32)
    rare = np.ascontiguousarray(planes.reshape(_PLANES, -1).T).view("<u4").reshape(-1)
    zigzag[codes == _RARE] += rare
    zigzag += np.uint32(1)
    return ((zigzag >> np.uint32(1)) ^ (~(zigzag & np.uint32(1)) + np.uint32(1))).view(np.int32)


def _packed(data: Bytes) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_CODING).compress(data.data)


def _unpacked(data: memoryview, most: int) -> Bytes:
    size = zstandard.frame_content_size(bytes(data[:18]))
    if not 0 <= size <= most:
        raise Corrupted(f"a delta's stream would have {size} bytes, at most {most} are possible")
    whole = zstandard.ZstdDecompressor().decompress(
        data, max_output_size=max(size, 1), allow_extra_data=False
    )
    return np.frombuffer(whole, np.uint8)
