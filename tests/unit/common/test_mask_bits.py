"""Action masks on the wire."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.common.mask_bits import allows, from_wire, to_wire


def bits(*rows: list[int], vocabulary: int = 11) -> np.ndarray:
    """Masks that allow the listed tokens."""
    allowed = np.zeros((len(rows), vocabulary), bool)
    for at, row in enumerate(rows):
        allowed[at, row] = True
    return np.packbits(allowed, axis=1, bitorder="little")


def test_masks_go_there_and_back() -> None:
    """The same bits, as many rows as there are tokens; nothing is nothing."""
    masks = bits([0, 10], [7, 8], [])
    np.testing.assert_array_equal(from_wire(to_wire(masks), 3, field="masks"), masks)
    assert to_wire(masks[:0]) == b""
    assert from_wire(b"", 4, field="masks").shape == (4, 0)


def test_nearly_empty_masks_are_small() -> None:
    """A hundred of 49,152 tokens at each of 64 places: a twenty-fifth of the bits."""
    generator = np.random.default_rng(0)
    masks = bits(*[generator.choice(49_152, 100).tolist() for _ in range(64)], vocabulary=49_152)
    assert len(to_wire(masks)) < masks.nbytes / 25


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"not a stream", 2),
        (zlib.compress(b"abc"), 2),
        (zlib.compress(b"abcd")[:-3], 2),
        (zlib.compress(b"ab"), 0),
    ],
)
def test_what_are_no_masks_is_refused(data: bytes, length: int) -> None:
    """Damage, another length, a stream that breaks off, masks of no token."""
    with pytest.raises(InvalidInput, match="masks"):
        from_wire(data, length, field="masks")


def test_a_stream_that_unpacks_to_too_much_is_refused() -> None:
    """No more is unpacked than masks of a million tokens can have."""
    with pytest.raises(InvalidInput, match="no masks of 1 tokens"):
        from_wire(zlib.compress(bytes(2**18)), 1, field="masks")


def test_which_tokens_are_allowed() -> None:
    """By the bit of each token's own row; ids that the mask has no bit for are not."""
    masks = bits([0, 10], [7], [8], [3], [3])
    found = allows(masks, np.array([10, 7, 0, 16, -1], np.int32))
    assert found.tolist() == [True, True, False, False, False]
