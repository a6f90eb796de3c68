"""Passes over the rows of a batch: those that join, and one token more for those that are there.

`FusedRunner` is for the Llama family, `PlainRunner` for every other causal model of transformers, `EncodedRunner`
(encoded_runner.py) for encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicLayer

from services.common.errors import InvalidInput
from services.models.encoder_decoder import is_encoder_decoder
from services.models.facts import language_config
from services.models.fused import FusedDecoder, fuse
from services.models.sharing import tokens_of
from services.policy.engines.kv_cache import KeyValueCache
from services.policy.engines.windows import Windows

Started = tuple[Sequence[int], Sequence[int]]
"""A prompt, and what there is of its completion."""


class Runner(Protocol):
    """What the decoding loop asks of a model. Places are those of the cache: rows joined stand behind the others."""

    def refresh(self) -> None:
        """Follow weights that changed."""
        ...

    def reserve(self, rows: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Room for so many rows, each of one of these sizes: tokens of the prompt, and at most of the completion.

        Only between calls: it ends every row.
        """
        ...

    def drop(self, place: int) -> None:
        """End a row; the last row moves to its place."""
        ...

    def forget(self) -> None:
        """Drop what is remembered: it may be no numbers."""
        ...

    def join(self, started: Sequence[Started], copies: Sequence[int]) -> torch.Tensor:
        """Rows at the next places, `copies[i]` of started[i] one after the other, each computed once.

        Gives their last hidden states, [rows, width].
        """
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One token [rows] int64 more for every row: the hidden states, [rows, width]."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in the model's dtype, of states [rows, width]."""
        ...


def runner_for(model: Any) -> Runner:
    """The fastest runner that suits the model."""
    if is_encoder_decoder(model):
        from services.policy.engines.encoded_runner import EncodedRunner

        return EncodedRunner(model)
    fused = fuse(model)
    return PlainRunner(model) if fused is None else FusedRunner(fused)


def _sequences(started: Sequence[Started]) -> list[list[int]]:
    return [[*prompt, *tokens] for prompt, tokens in started]


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Ids padded on the right with 0, [rows, time] int64: no real token ever sees what comes after it."""
    width = max(map(len, sequences))
    return torch.tensor(
        [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences], device=device
    )


def _lasts(states: torch.Tensor, sequences: Sequence[Sequence[int]], copies: Sequence[int]) -> torch.Tensor:
    """Of states [sequences, time, width] each one's last, as often as it is wanted, [rows, width]."""
    rows = [row for row, count in enumerate(copies) for _ in range(count)]
    return states[rows, [len(sequences[row]) - 1 for row in rows]]


class _Cached:
    """What runners with one cache for prompt and completion share."""

    cache: KeyValueCache

    def reserve(self, rows: int, sizes: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self.cache.reserve(rows, max(prompt + completion for prompt, completion in sizes))

    def drop(self, place: int) -> None:
        """See Runner."""
        self.cache.drop(place)

    def forget(self) -> None:
        """See Runner."""
        self.cache.forget()


class FusedRunner(_Cached):
    """Passes of a FusedDecoder."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder
        self.cache = KeyValueCache(
            layers=decoder.layers,
            heads=decoder.key_heads,
            width=decoder.width,
            dtype=decoder.dtype,
            device=decoder.device,
        )

    def refresh(self) -> None:
        """See Runner."""
        self._decoder.refresh()

    def join(self, started: Sequence[Started], copies: Sequence[int]) -> torch.Tensor:
        """See Runner. What several of them begin with is computed once."""
        sequences = _sequences(started)
        lengths = [len(each) for each in sequences]
        rows, time = len(lengths), max(lengths)
        places = self.cache.add(lengths, copies)
        tokens = tokens_of(lengths, time, [np.array(each, np.int32) for each in sequences])
        at, source = (
            None if one is None else one.to(self._decoder.device) for one in (tokens.places, tokens.source)
        )

        def padded(states: torch.Tensor) -> torch.Tensor:
            spread = states if source is None else states.index_select(0, source)
            return spread.view(rows, time, *states.shape[1:])

        def attend(layer: int, queries: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
            shaped = padded(pairs)
            for row, length in enumerate(lengths):
                self.cache.fill(layer, places[row], shaped[row, :length])
            keys, values = shaped.transpose(1, 2).chunk(2, 1)
            out = self._attention(padded(queries).transpose(1, 2), keys, values, is_causal=time > 1)
            flat = out.transpose(1, 2).reshape(rows * time, -1)
            return flat if at is None else flat.index_select(0, at)

        ids = _padded(sequences, self._decoder.device).view(-1)
        positions = tokens.positions.to(self._decoder.device)
        states = self._decoder.states(ids if at is None else ids[at], positions, attend)
        return _lasts(padded(states), sequences, copies)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        positions = self.cache.extend()
        if self._decoder.steps:
            return self._decoder.step(tokens, positions, *self.cache.whole())

        def attend(layer: int, queries: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
            keys, values, mask = self.cache.write(layer, pairs)
            # The queries of a key head stand as if they were times: the kernel is twice as fast as with shared heads.
            grouped = queries.view(len(queries), self._decoder.key_heads, -1, self._decoder.width)
            return self._attention(grouped, keys, values, attn_mask=mask).reshape(len(queries), -1)

        return self._decoder.states(tokens, positions, attend)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        return self._decoder.logits(states)

    def _attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """[rows, heads, time, width] each, and so is what it gives."""
        return scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=self._decoder.scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
            **options,
        )


class PlainRunner(_Cached):
    """Passes of any causal model of transformers, through its own forward."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._windows = Windows(model)
        heads, width, layers = _attention_shape(model)
        self._layers = layers
        self.cache = KeyValueCache(
            layers=layers, heads=heads, width=width, dtype=model.dtype, device=model.device
        )

    def refresh(self) -> None:
        """Nothing: the model's own parameters compute."""

    def join(self, started: Sequence[Started], copies: Sequence[int]) -> torch.Tensor:
        """See Runner."""
        sequences = _sequences(started)
        places = self.cache.add([len(sequence) for sequence in sequences], copies)
        fresh = Cache(layers=[DynamicLayer() for _ in range(self._layers)])
        states = self._model.base_model(
            input_ids=_padded(sequences, self._model.device), past_key_values=fresh, use_cache=True
        ).last_hidden_state
        for at, layer in enumerate(fresh.layers):
            pairs = torch.cat([layer.keys, layer.values], 1).transpose(1, 2)
            for row, sequence in enumerate(sequences):
                self.cache.fill(at, places[row], pairs[row, : len(sequence)])
        return _lasts(states, sequences, copies)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        positions = self.cache.extend()
        layers = [_StepLayer(self.cache, at) for at in range(self._layers)]
        return self._model.base_model(
            input_ids=tokens[:, None],
            attention_mask=self._windows.masks(self.cache),
            position_ids=positions[:, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).last_hidden_state[:, -1]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        return self._model.get_output_embeddings()(states)


class _StepLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of a KeyValueCache as transformers knows it, for a pass of one token a row."""

    def __init__(self, cache: KeyValueCache, at: int) -> None:
        super().__init__()
        self._cache, self._at = cache, at

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, heads, 1, width] and give views of all there is."""
        keys, values, _mask = self._cache.write(
            self._at, torch.cat([key_states[:, :, 0], value_states[:, :, 0]], 1)
        )
        return keys, values

    def get_seq_length(self) -> int:
        """Columns before this pass."""
        return self._cache.columns - 1


def _attention_shape(model: Any) -> tuple[int, int, int]:
    """Key heads, width of a head and layers, seen in a pass of one token."""
    layers = language_config(model.config).num_hidden_layers
    fresh = Cache(layers=[DynamicLayer() for _ in range(layers)])
    with torch.inference_mode():
        model.base_model(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
            past_key_values=fresh,
            use_cache=True,
        )
    shapes = {tensor.shape for layer in fresh.layers for tensor in (layer.keys, layer.values)}
    if len(shapes) != 1:
        raise InvalidInput(f"{type(model).__name__}: keys and values of unlike shapes are not supported")
    _, heads, _, width = fresh.layers[0].keys.shape
    return heads, width, len(fresh.layers)
