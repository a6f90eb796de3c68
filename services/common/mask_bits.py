"""Action masks on the wire: rows of bits, a row for each token, compressed; most are nearly empty. No torch here.

allowed tokens ──8 a byte──▶ uint8 [length, ceil(vocabulary / 8)] ──zlib──▶ Completion.action_masks
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput

MaskBits = npt.NDArray[np.uint8]
# Runs of empty bytes alone: 198 bytes of 6,144 for 100 of 49,152 tokens, where deflate's matches come to 341, slower.
_STRATEGY = zlib.Z_RLE
_MOST_BYTES = 2**17
"""A token's row, of a vocabulary of a million: what unpacks to more is no mask."""


def to_wire(masks: MaskBits) -> bytes:
    """The bytes of masks [length, ceil(vocabulary / 8)]; empty for none."""
    if not masks.size:
        return b""
    packer = zlib.compressobj(level=1, strategy=_STRATEGY)
    return packer.compress(np.ascontiguousarray(masks).tobytes()) + packer.flush()


def from_wire(data: bytes, length: int, *, field: str) -> MaskBits:
    """Masks of `length` tokens, uint8 [length, ceil(vocabulary / 8)]; [length, 0] where there are none.

    Raises InvalidInput, naming `field`, for bytes that are no masks of so many tokens.
    """
    if not data:
        return np.zeros((length, 0), np.uint8)
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(data, max(1, length) * _MOST_BYTES)
    except zlib.error as error:
        raise InvalidInput(f"{field}: not a zlib stream: {error}") from error
    if not unpacker.eof or not length or len(raw) % length:
        raise InvalidInput(f"{field}: {len(raw)} bytes are no masks of {length} tokens")
    return np.frombuffer(raw, np.uint8).reshape(length, -1)


def allows(masks: MaskBits, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Whether each token's mask allows it, bool [length]; one past the mask's end is not allowed."""
    byte = token_ids >> 3
    inside = (token_ids >= 0) & (byte < masks.shape[1])
    row = masks[np.arange(len(token_ids)), np.where(inside, byte, 0)]
    allowed: npt.NDArray[np.bool_] = inside & ((row >> (token_ids & 7)) & 1).astype(bool)
    return allowed
