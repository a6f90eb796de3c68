"""Splitting a decoder between its frozen lower layers and the rest, so that the frozen half runs once a batch.

Both halves share the original's parameters. Works for models of the Llama family's form (embed_tokens, layers,
norm, rotary embeddings made from positions); others are refused, not guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.common.errors import InvalidInput
from services.models.unrolled import Unrolled, unroll, with_layers


@dataclass(frozen=True, slots=True)
class Split:
    """lower(ids) gives the hidden states [rows, time, width] between the halves; upper goes on from there."""

    lower_half: Any
    upper_half: Any
    unrolled: Unrolled | None = None
    """The upper half's layers in a faster way, where there is one."""
    trains_embeddings: bool = False

    def lower(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states after the frozen layers, [rows, time, width], without a gradient.

        Where the embeddings are trained these are the embeddings, with the gradient that is asked for.
        """
        with torch.set_grad_enabled(self.trains_embeddings and torch.is_grad_enabled()):
            return self.lower_half(input_ids=ids, use_cache=False).last_hidden_state

    def upper(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Last hidden states, [rows, time, width], from those that `lower` gave. lengths: tokens of each row."""
        if self.unrolled is not None:
            return self.unrolled(hidden, lengths)
        return self.upper_half(inputs_embeds=hidden, use_cache=False).last_hidden_state


def freeze(model: Any, layers: int, *, embeddings: bool = False) -> Split:
    """Freeze the embeddings (and a tied head) and the lowest `layers` layers, and split there.

    With 0 layers nothing else is frozen and the lower half is the embedding alone. embeddings: they are trained too,
    and the head. Raises InvalidInput when the model has another form or fewer layers, or trained embeddings would
    stand below frozen layers.
    """
    if embeddings and layers:
        raise InvalidInput(
            f"train_embeddings needs frozen_layers = 0, not {layers}: they stand below all layers"
        )
    backbone = model.base_model
    if not hasattr(backbone, "layers") or not hasattr(backbone, "norm"):
        raise InvalidInput(
            f"frozen_layers needs a model of the Llama family's form, not {type(model).__name__}"
        )
    if layers >= len(backbone.layers):
        raise InvalidInput(f"frozen_layers = {layers}, but the model has {len(backbone.layers)} layers")
    for parameter in backbone.get_input_embeddings().parameters():
        parameter.requires_grad_(embeddings)
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(embeddings)
    for layer in backbone.layers[:layers]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    lower = with_layers(backbone, torch.nn.ModuleList(backbone.layers[:layers]), norm=torch.nn.Identity())
    upper = with_layers(backbone, torch.nn.ModuleList(backbone.layers[layers:]), norm=backbone.norm)
    return Split(lower, upper, unroll(upper), embeddings)
