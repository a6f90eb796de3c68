"""Bytes of weights as they come: any cut into pieces, nothing out of order, nothing wrong, nothing missing."""

from __future__ import annotations

import pytest
import torch

from services.common.errors import Corrupted
from services.models.facts import tensor_bytes
from services.models.manifest import entries_of
from services.policy.fetching import Arriving

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "nothing": torch.zeros(0, dtype=torch.bfloat16),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "nothing at the end": torch.zeros(0, 3),
}
ENTRIES = list(entries_of(STATE))
DATA = b"".join(bytes(tensor_bytes(tensor)) for tensor in STATE.values())


async def arrived(data: bytes, size: int) -> dict[str, torch.Tensor]:
    arriving = Arriving(ENTRIES)
    for start in range(0, len(data), size):
        arriving.take(start, data[start : start + size])
    return await arriving.whole()


@pytest.mark.parametrize("size", [1, 7, 24, 25, 1000])
async def test_any_cut_gives_the_same_tensors(size: int) -> None:
    """Pieces may end inside a tensor, between two, or hold several; tensors without bytes are there too."""
    tensors = await arrived(DATA, size)
    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert all(tensors[name].dtype == STATE[name].dtype for name in STATE)


@pytest.mark.parametrize(("offset", "piece"), [(1, b"x"), (4, b"x"), (0, DATA + b"x")])
def test_a_piece_that_is_not_the_next_one_is_refused(offset: int, piece: bytes) -> None:
    """A gap, a repetition and more than there is end the transfer."""
    arriving = Arriving(ENTRIES)
    if offset == 4:
        arriving.take(0, DATA[:8])
    with pytest.raises(Corrupted, match="were expected"):
        arriving.take(offset, piece)


async def test_missing_bytes_are_seen() -> None:
    """A transfer that ends early is no set of weights."""
    with pytest.raises(Corrupted, match="33 bytes came, 34 were promised"):
        await arrived(DATA[:-1], 5)


async def test_one_wrong_byte_is_seen() -> None:
    """The tensor that it is in is named."""
    with pytest.raises(Corrupted, match="b: the digest of the bytes is not the manifest's"):
        await arrived(DATA[:-1] + b"\x7f", 5)
