"""Keys and values of the completions in the making: one buffer, rows side by side, each from its first column on.

    row 0   a a a a a . . .      lengths 5       a token is written behind its row's last;
    row 1   b b . . . . . .              2       a row that ends gives its place to the last row
    row 2   c c c c . . . .              4

The memory outlives the calls, shaped anew by each: what a masked column holds must be a number, and fresh memory costs
a fault a page. It is that of the largest call, however many rows another had and however long they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch


class KeyValueCache:
    """[layers, rows, columns, 2 * key heads, width]: the keys' heads, then the values'."""

    def __init__(
        self, *, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers, self._heads, self._width = layers, heads, width
        self._dtype, self._device = dtype, device
        self._lengths: list[int] = []
        self._memory: torch.Tensor
        self.forget()

    @property
    def rows(self) -> int:
        """Rows held now; they stand at places 0 … rows-1."""
        return len(self._lengths)

    def reserve(self, rows: int, columns: int) -> None:
        """Room for so many rows of so many tokens. Only between calls: it empties the cache."""
        shape = (self._layers, rows, columns, 2 * self._heads, self._width)
        size = math.prod(shape)
        if size > len(self._memory):
            self.forget()  # both at once may be more than there is
            self._memory = torch.zeros(size, dtype=self._dtype, device=self._device)
        self._buffer = self._memory[:size].view(shape)
        self._mask = torch.zeros((rows, columns), dtype=self._dtype, device=self._device)
        self._lengths = []
        self.columns = 0

    def forget(self) -> None:
        """Drop the memory: what is in it may be no numbers."""
        self._memory = torch.zeros(0, dtype=self._dtype, device=self._device)
        self.reserve(0, 0)

    def add(self, lengths: Sequence[int], copies: Sequence[int]) -> list[slice]:
        """Rows at the next places, `copies[i]` of length i each: their places. `fill` brings keys and values."""
        first = self.rows
        self._lengths += [length for length, count in zip(lengths, copies, strict=True) for _ in range(count)]
        new = torch.tensor(self._lengths[first:], device=self._device)
        columns = torch.arange(self._mask.shape[1], device=self._device)
        self._mask[first : self.rows] = torch.where(columns < new[:, None], 0.0, -torch.inf).to(self._dtype)
        ends = [first + end for end in accumulate(copies)]
        return [slice(end - count, end) for end, count in zip(ends, copies, strict=True)]

    def fill(self, layer: int, places: slice, pairs: torch.Tensor) -> None:
        """Keys and values of these rows' first tokens, the same for all, [tokens, 2 * heads, width]."""
        self._buffer[layer, places, : len(pairs)] = pairs

    def drop(self, place: int) -> None:
        """End a row; the last row moves to its place."""
        last = self.rows - 1
        if place != last:
            length = self._lengths[last]
            self._buffer[:, place, :length] = self._buffer[:, last, :length]
            self._mask[place] = self._mask[last]
            self._lengths[place] = self._lengths[last]
        self._lengths.pop()

    def extend(self) -> torch.Tensor:
        """One more token in every row: their positions, [rows] int64. `write` brings keys and values."""
        positions = torch.tensor(self._lengths, device=self._device)
        self._lengths = [length + 1 for length in self._lengths]
        self._at = torch.arange(self.rows, device=self._device) * self._buffer.shape[2] + positions
        self._mask.view(-1)[self._at] = 0.0
        self.columns = max(self._lengths)
        self._seen = self._mask[: self.rows, None, None, : self.columns]
        return positions

    def seen(self) -> torch.Tensor:
        """1 where a row has a token, the new one included, else 0: [rows, columns] int64."""
        return (self._seen[:, 0, 0] == 0).long()

    def seen_within(self, window: int) -> torch.Tensor:
        """To add to scores, [rows, 1, 1, columns]: 0 for a row's last `window` tokens, the new one included, else -inf.

        A window of 0 is all of them.
        """
        if not window:
            return self._seen
        lengths = torch.tensor(self._lengths, device=self._device)[:, None, None, None]
        columns = torch.arange(self.columns, device=self._device)
        return self._seen.masked_fill(columns < lengths - window, -torch.inf)

    def write(self, layer: int, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write every row's new token, [rows, 2 * heads, width], and give all there is.

        keys and values [rows, heads, columns, width], and the mask to add to scores, [rows, 1, 1, columns].
        """
        self._buffer[layer].view(-1, 2 * self._heads, self._width).index_copy_(0, self._at, pairs)
        return self.read(layer)

    def whole(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For whoever writes all layers at once: the buffer, where in rows and columns, and what to add to scores."""
        return self._buffer, self._at, self._seen

    def hold(self) -> None:
        """No token more: `read` gives what there is."""
        self.columns = max(self._lengths)
        self._seen = self._mask[: self.rows, None, None, : self.columns]

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `write` gives it, without writing."""
        held = self._buffer[layer, : self.rows, : self.columns].transpose(1, 2)
        return held[:, : self._heads], held[:, self._heads :], self._seen
