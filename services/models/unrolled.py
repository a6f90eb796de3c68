"""A decoder's layers for training: packed sequences through blocks whose gradients are written out (block.py).

Shares the backbone's parameters, and follows whatever is done to them. `unroll` tries it against the backbone's own
pass, states and gradients: a model that does more than meets the eye is trained by transformers' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch.utils.checkpoint import checkpoint

from services.models.block import Block, Layout
from services.models.cut import said_of
from services.models.fused import has_the_form, rotations
from services.models.packed import same_states
from services.models.sharing import Tokens, tokens_of

WeightOf = Callable[[Any], torch.Tensor]
_log = structlog.get_logger(__name__)


class Unrolled:
    """The layers and the last norm of a backbone of the Llama family's form, made by `unroll`."""

    def __init__(self, backbone: Any, weight_of: WeightOf = attrgetter("weight")) -> None:
        self._backbone, self._weight_of = backbone, weight_of
        attention = backbone.layers[0].self_attn
        self._width = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._width
        self._key_heads = attention.k_proj.out_features // self._width
        self._scale = float(attention.scaling)
        self._eps = float(backbone.layers[0].input_layernorm.variance_epsilon)
        self._cosine, self._sine = rotations(backbone)

    def reading(self, weight_of: WeightOf) -> Unrolled:
        """The same layers, by the weights that this function gives of their linear modules and norms."""
        return Unrolled(self._backbone, weight_of)

    def through(self, backbone: Any) -> Unrolled:
        """As here, through some of the same backbone's layers."""
        other = copy.copy(self)
        other._backbone = backbone
        return other

    def __call__(
        self, hidden: torch.Tensor, lengths: Sequence[int], prompts: Sequence[npt.NDArray[np.int32]] = ()
    ) -> torch.Tensor:
        """Last hidden states [rows, time, width] from those before the layers; 0 past the lengths of the rows.

        prompts: what each row begins with; what several of them begin with is computed once.
        """
        rows, time, width = hidden.shape
        if len(lengths) != rows or max(lengths) > time:
            raise ValueError(f"{len(lengths)} lengths up to {max(lengths)} for {rows} rows of {time}")
        tokens = tokens_of(lengths, time, prompts)
        unseen = torch.ones((1, time, time), dtype=torch.bool, device=hidden.device).triu(1)
        x = hidden.reshape(rows * time, width)
        states = self.states(x if tokens.places is None else x[tokens.places], tokens, unseen, rows)
        x = states
        if tokens.places is not None:
            x = states.new_zeros((rows * time, width)).index_copy(0, tokens.places, states)
        if tokens.copies is not None:
            for shared, places in zip(tokens.copies.shared, tokens.copies.places, strict=True):
                others = places[:, 1:]
                alike = states[shared][:, None].expand(*others.shape, width)
                x = x.index_copy(0, others.reshape(-1), alike.reshape(-1, width))
        return x.view(rows, time, width)

    def states(
        self,
        x: torch.Tensor,
        tokens: Tokens,
        unseen: torch.Tensor,
        rows: int,
    ) -> torch.Tensor:
        """Last hidden states [tokens, width] of tokens side by side, from those before the layers.

        unseen: [1 or rows, time, time] bool, what a token (second last) of a row does not see.
        """
        layout = Layout(
            rows,
            unseen.shape[-1],
            tokens.places,
            tokens.source,
            tokens.copies,
            self._cosine[tokens.positions],
            self._sine[tokens.positions],
            torch.zeros(unseen.shape, dtype=x.dtype, device=x.device).masked_fill_(unseen, float("-inf")),
            heads=self._heads,
            key_heads=self._key_heads,
            width=self._width,
            scale=self._scale,
            eps=self._eps,
        )
        for layer in self._backbone.layers:
            given = (x, layout, *map(self._weight_of, _modules(layer)))
            # As transformers marks it: the block is computed again on the way back, and keeps its input alone.
            if getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
                x = checkpoint(Block.apply, *given, use_reentrant=False)
            else:
                x = Block.apply(*given)  # type: ignore[no-untyped-call]
        states: torch.Tensor = self._backbone.norm(x)
        return states


def _modules(layer: Any) -> tuple[Any, ...]:
    """In the order that Block takes their weights in."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
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


def with_layers(backbone: Any, keep: Sequence[int], *, norm: torch.nn.Module) -> Any:
    """A shallow copy of a backbone with some of its layers and another norm; parameters stay shared.

    What its configuration says of each layer, of masks and rotations for instance, is that of these.
    """
    other = copy.copy(backbone)
    other._modules = dict(backbone._modules)
    other.layers, other.norm = torch.nn.ModuleList([backbone.layers[at] for at in keep]), norm
    other.config = copy.copy(backbone.config)
    for name, said in said_of(keep, vars(backbone.config), len(backbone.layers)).items():
        setattr(other.config, name, said)
    other.config.num_hidden_layers = len(keep)
    return other


@torch.inference_mode(False)
def unroll(backbone: Any) -> Unrolled | None:
    """The layers of a backbone, to be trained; None for one of another form, on another device, or that differs."""
    if backbone.device.type != "cpu" or not has_the_form(backbone) or not _plain(backbone):
        return None
    attention = backbone.config._attn_implementation
    backbone.set_attn_implementation(
        "eager"
    )  # whatever it has by now may want arguments that nobody gives here
    try:
        difference = _difference(backbone)
    finally:
        backbone.set_attn_implementation(attention)
    if difference:
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

    The states of each layer alone, and the lowest one's gradient, as all are of one form: through thirty of them
    bfloat16 leaves two ways of computing a gradient nothing in common on tokens that mean nothing.
    """
    lengths, unrolled = (9, 5), Unrolled(backbone)
    width, dtype = backbone.config.hidden_size, backbone.embed_tokens.weight.dtype
    generator = torch.Generator().manual_seed(1)
    spread = float(backbone.embed_tokens.weight.detach().float().std())
    hidden = (torch.randn((2, 9, width), generator=generator) * spread).to(dtype)
    direction = torch.randn((2, 9, width), generator=generator).to(dtype)
    direction[1, 5:] = 0

    def trial(passed: Any, *, gradient: bool) -> list[torch.Tensor]:
        given = hidden.clone().requires_grad_()
        with torch.set_grad_enabled(gradient):
            states = passed(given)
            found = [states, *(torch.autograd.grad((states * direction).sum(), given) if gradient else ())]
        return [torch.cat([one[0], one[1, :5]]).detach() for one in found]

    for at in range(len(backbone.layers)):
        one = with_layers(backbone, [at], norm=backbone.norm)
        expected = trial(partial(_last_states, one), gradient=at == 0)
        found = trial(partial(unrolled.through(one), lengths=lengths), gradient=at == 0)
        # Of a layer that is not the lowest there are states alone.
        for what, theirs, ours in zip(("states", "gradients"), expected, found, strict=False):
            if not same_states(theirs, ours):
                return f"{what} of layer {at}"
    return ""


def _last_states(backbone: Any, hidden: torch.Tensor) -> torch.Tensor:
    return backbone(inputs_embeds=hidden, use_cache=False).last_hidden_state
