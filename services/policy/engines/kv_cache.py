"""A key-value cache that writes in place: transformers' own concatenates 60 tensors at every token."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in buffers of fixed capacity, [rows, heads, capacity, width]."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.is_initialized = False
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [rows, heads, n, width] and return views of all there is."""
        if not self.is_initialized:
            rows, heads, _n, width = key_states.shape
            self.key_buffer = key_states.new_empty(rows, heads, self.capacity, width)
            self.value_buffer = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
            self.is_initialized = True
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop every row that is not named, [kept] int64."""
        self.key_buffer = self.key_buffer[rows]
        self.value_buffer = self.value_buffer[rows]


class InPlaceCache(Cache):  # type: ignore[misc]
    """One InPlaceLayer for each layer of the model."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[InPlaceLayer(capacity) for _ in range(layers)])

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop finished rows from every layer."""
        for layer in self.layers:
            layer.keep_rows(rows)
