"""Splitting a decoder between its frozen lower layers and the rest, so that the frozen half runs once a batch.

Both halves share the original's parameters. Works for models of the Llama family's form (embed_tokens, layers,
norm, rotary embeddings made from positions); others are refused, not guessed at.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from services.common.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Split:
    """lower(ids) gives the hidden states [rows, time, width] between the halves; upper goes on from there."""

    lower_half: Any
    upper_half: Any

    def lower(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states after the frozen layers, [rows, time, width], without a gradient."""
        with torch.no_grad():
            return self.lower_half(input_ids=ids, use_cache=False).last_hidden_state

    def upper(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states, [rows, time, width], from those that `lower` gave."""
        return self.upper_half(inputs_embeds=hidden, use_cache=False).last_hidden_state


def freeze(model: Any, layers: int) -> Split:
    """Freeze the embeddings (and a tied head) and the lowest `layers` layers, and split there.

    With 0 layers nothing is frozen and the lower half is the embedding alone, which then runs with gradients
    off: the embeddings are not trained either (a tied head of 28M of 135M parameters would be).
    Raises InvalidInput when the model has another form or fewer layers.
    """
    backbone = model.base_model
    if not hasattr(backbone, "layers") or not hasattr(backbone, "norm"):
        raise InvalidInput(
            f"frozen_layers needs a model of the Llama family's form, not {type(model).__name__}"
        )
    if layers >= len(backbone.layers):
        raise InvalidInput(f"frozen_layers = {layers}, but the model has {len(backbone.layers)} layers")
    for parameter in backbone.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(False)
    for layer in backbone.layers[:layers]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    lower = _with(backbone, torch.nn.ModuleList(backbone.layers[:layers]), norm=torch.nn.Identity())
    upper = _with(backbone, torch.nn.ModuleList(backbone.layers[layers:]), norm=backbone.norm)
    return Split(lower, upper)


def _with(backbone: Any, layers: torch.nn.ModuleList, *, norm: torch.nn.Module) -> Any:
    """A shallow copy with other layers and another norm; parameters stay shared."""
    half = copy.copy(backbone)
    half._modules = dict(backbone._modules)
    half.layers, half.norm = layers, norm
    half.config = copy.copy(backbone.config)
    half.config.num_hidden_layers = len(layers)
    return half
