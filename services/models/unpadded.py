"""Padding-free passes for training encoders on processors: attention alone is padded, and dropout is drawn quickly.

    rows [a a a] [b] [c c]  ──▶  linear layers, norms, dropout: [a a a b c c]
                            ──▶  attention: [a a a]  softmax(q k' scale) v by row, what pads a row unseen
                                            [b . .]
                                            [c c .]

`packed.py` attends row by row, which suits few long rows without gradients; a training batch has many short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from services.models.dropout import dropped
from services.models.packed import packs_with

ATTENTION = "trimtab_unpadded"


def unpadded_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_lengths: Sequence[int] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' registry, every token of a row seeing all of its row.

    query, key, value: [1, heads, tokens, width]; packed_lengths: tokens of each row, in order, together `tokens`; none:
    all are one row. Gives [1, tokens, heads, width]. Raises ValueError for a mask, a causal model, shared key heads.
    """
    if attention_mask is not None:
        raise ValueError("packed rows take no mask")
    if getattr(module, "is_causal", True) or query.shape[1] != key.shape[1]:
        raise ValueError("only encoders' attention is computed here")
    lengths = torch.tensor(packed_lengths or (query.shape[2],), device=query.device)
    real = torch.arange(int(lengths.max()), device=query.device) < lengths[:, None]
    places = real.view(-1).nonzero()[:, 0]
    queries, keys, values = (_by_row(one, places, real) for one in (query, key, value))
    unseen = torch.where(real, 0.0, -torch.inf).to(query.dtype).repeat_interleave(query.shape[1], 0)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    likely = torch.baddbmm(unseen[:, None], queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
    attended = torch.bmm(dropped(likely, dropout), values).unflatten(0, (len(real), -1))
    return attended.transpose(1, 2).flatten(0, 1).index_select(0, places)[None], None


def _by_row(x: torch.Tensor, places: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, width] as [rows * heads, time, width], 0 where there is no token."""
    tokens = x[0].transpose(0, 1)
    padded = tokens.new_zeros((real.numel(), *tokens.shape[1:])).index_copy(0, places, tokens)
    return padded.view(*real.shape, *tokens.shape[1:]).transpose(1, 2).flatten(0, 1)


def leave_out_padding(backbone: Any) -> bool:
    """Switch an encoder to such passes; false, and unchanged, for one on another device or that they do not suit."""
    return backbone.device.type == "cpu" and packs_with(backbone, ATTENTION, unpadded_attention)
