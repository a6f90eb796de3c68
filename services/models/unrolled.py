"""A decoder's layers for training: packed sequences through blocks whose gradients are written out (block.py).

Shares the backbone's parameters, and follows whatever is done to them. `unroll` tries it against the backbone's own
pass, states and gradients: a model that does more than meets the eye is trained by transformers' code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import structlog
import torch

from services.models.block import Block, Layout
from services.models.fused import has_the_form, rotations
from services.models.packed import same_states

_log = structlog.get_logger(__name__)


class Unrolled:
    """The layers and the last norm of a backbone of the Llama family's form, made by `unroll`."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        attention = backbone.layers[0].self_attn
        self._width = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._width
        self._key_heads = attention.k_proj.out_features // self._width
        self._scale = float(attention.scaling)
        self._eps = float(backbone.layers[0].input_layernorm.variance_epsilon)
        self._cosine, self._sine = rotations(backbone)

    def __call__(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Last hidden states [rows, time, width] from those before the layers; 0 past the lengths of the rows."""
        rows, time, width = hidden.shape
        layout, positions = self._layout(hidden, lengths)
        x = hidden.reshape(rows * time, width)
        x = x if positions is None else x[positions]
        for layer in self._backbone.layers:
            x = Block.apply(x, layout, *_weights(layer))  # type: ignore[no-untyped-call]
        x = self._backbone.norm(x)
        if positions is not None:
            x = x.new_zeros((rows * time, width)).index_copy(0, positions, x)
        return x.view(rows, time, width)

    def _layout(self, hidden: torch.Tensor, lengths: Sequence[int]) -> tuple[Layout, torch.Tensor | None]:
        """The blocks' layout, and where the tokens stand in rows x time where some of it is padding."""
        rows, time, _ = hidden.shape
        if len(lengths) != rows or max(lengths) > time:
            raise ValueError(f"{len(lengths)} lengths up to {max(lengths)} for {rows} rows of {time}")
        positions = torch.cat([torch.arange(length) for length in lengths]).to(hidden.device)
        places = None
        if min(lengths) < time:
            starts = torch.arange(rows).repeat_interleave(torch.tensor(lengths)) * time
            places = starts.to(hidden.device) + positions
        causal = torch.full((time, time), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
        layout = Layout(
            rows,
            time,
            places,
            self._cosine[positions],
            self._sine[positions],
            causal,
            heads=self._heads,
            key_heads=self._key_heads,
            width=self._width,
            scale=self._scale,
            eps=self._eps,
        )
        return layout, places


def _weights(layer: Any) -> list[torch.Tensor]:
    """In the order that Block takes them in."""
    attention, mlp = layer.self_attn, layer.mlp
    modules = (
        layer.input_layernorm,
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        layer.post_attention_layernorm,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    )
    return [module.weight for module in modules]


def with_layers(backbone: Any, layers: torch.nn.ModuleList, *, norm: torch.nn.Module) -> Any:
    """A shallow copy of a backbone with other layers and another norm; parameters stay shared."""
    other = copy.copy(backbone)
    other._modules = dict(backbone._modules)
    other.layers, other.norm = layers, norm
    other.config = copy.copy(backbone.config)
    other.config.num_hidden_layers = len(layers)
    return other


def unroll(backbone: Any) -> Unrolled | None:
    """The layers of a backbone, to be trained; None for one of another form, on another device, or that differs."""
    if backbone.device.type != "cpu" or not has_the_form(backbone) or not _plain(backbone):
        return None
    if difference := _difference(backbone):
        _log.info("unrolled layers do not suit this model", model=type(backbone).__name__, reason=difference)
        return None
    return Unrolled(backbone)


def _plain(backbone: Any) -> bool:
    """Whether the projections have no bias and the heads no norm of their own."""
    return all(
        getattr(part, "bias", None) is None
        and type(part) is torch.nn.Linear
        and not hasattr(layer.self_attn, "q_norm")
        for layer in backbone.layers
        for part in (*layer.self_attn.children(), *layer.mlp.children())
        if hasattr(part, "weight")
    )


def _difference(backbone: Any) -> str:
    """Whether states or a gradient differ from the backbone's own on a small trial; empty where they agree.

    With the lowest layer alone, as all are of one form: through thirty of them bfloat16 leaves two ways of computing a
    gradient nothing in common on tokens that mean nothing.
    """
    one = with_layers(backbone, torch.nn.ModuleList(backbone.layers[:1]), norm=backbone.norm)
    unrolled = Unrolled(one)
    lengths = (9, 5)
    width, dtype = backbone.config.hidden_size, backbone.embed_tokens.weight.dtype
    generator = torch.Generator().manual_seed(1)
    spread = float(backbone.embed_tokens.weight.detach().float().std())
    hidden = (torch.randn((2, 9, width), generator=generator) * spread).to(dtype)
    direction = torch.randn((2, 9, width), generator=generator).to(dtype)
    direction[1, 5:] = 0

    def trial(passed: Any) -> tuple[torch.Tensor, ...]:
        given = hidden.clone().requires_grad_()
        with torch.enable_grad():
            states = passed(given)
            (by_hidden,) = torch.autograd.grad((states * direction).sum(), given)
        return torch.cat([states[0], states[1, :5]]).detach(), torch.cat([by_hidden[0], by_hidden[1, :5]])

    expected = trial(lambda given: one(inputs_embeds=given, use_cache=False).last_hidden_state)
    found = trial(lambda given: unrolled(given, lengths))
    for what, theirs, ours in zip(("states", "gradients"), expected, found, strict=True):
        if not same_states(theirs, ours):
            return what
    return ""
