"""Dropout (Srivastava et al., JMLR 15, 2014) whose masks are drawn quickly on a processor.

torch draws a processor's Bernoulli numbers one after the other on one thread, 11 ns each: a fifth of a training step of
a small encoder. Here an element has 16 random bits of SFC64, whose seed is drawn from torch's generator: what is
dropped follows from torch's seed and state as before, but is not what torch would have dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

ATTENTION = "trimtab_dropout"
_STEPS = 1 << 16


class QuickDropout(torch.nn.Dropout):
    """torch.nn.Dropout, drawn by `mask` on a processor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x with `p` of its elements at 0 and the others scaled, in training; x itself otherwise."""
        return dropped(x, self.p) if self.training else x


def dropped(x: torch.Tensor, share: float) -> torch.Tensor:
    """x with so many of its elements at 0 and the others scaled so that the mean stays."""
    if not share or x.device.type != "cpu":
        return torch.nn.functional.dropout(x, share)
    return x * mask(x.shape, share, x.dtype)


def mask(shape: torch.Size, share: float, dtype: torch.dtype) -> torch.Tensor:
    """0 for so many elements, to the 65,536th; 1 / (1 - share) for the others. At least one in 65,536 is kept."""
    lost = min(round(share * _STEPS), _STEPS - 1)
    count = shape.numel()
    seed = int(torch.randint(1 << 62, ()))
    bits = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    kept = torch.from_numpy(bits).view(shape) >= lost - _STEPS // 2
    return kept.to(dtype).mul_(_STEPS / (_STEPS - lost))


@contextlib.contextmanager
def dropping(model: torch.nn.Module, backbone: Any, share: float) -> Iterator[None]:
    """`model` in training mode with dropout, in the places where it has it; in eval mode without afterwards.

    Nothing at a share of 0. backbone: the transformer in it; its attention drops by `mask`, too, where that is torch's.
    """
    if not share:
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.callback(model.eval)
        for parent in list(model.modules()):
            for name, part in list(parent._modules.items()):
                if isinstance(part, torch.nn.Dropout):
                    undo.callback(setattr, parent, name, part)
                    setattr(parent, name, QuickDropout(share))
        _attend_quickly(backbone, undo)
        model.train()
        yield


def _attend_quickly(backbone: Any, undo: contextlib.ExitStack) -> None:
    """Attention of this module where it was torch's, on a processor. Any other may do more than meets the eye."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    before = getattr(backbone.config, "_attn_implementation", None)
    chosen = before == "sdpa" and getattr(backbone, "_supports_attention_backend", False)
    if chosen and backbone.device.type == "cpu":
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        undo.callback(backbone.set_attn_implementation, before)
        backbone.set_attn_implementation(ATTENTION)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' registry: query, key, value [rows, heads, tokens, width]; attention_mask, if there is
    one, [rows or 1, 1, tokens, tokens], true where a token sees. Gives [rows, tokens, heads, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = attention_mask is None and bool(getattr(module, "is_causal", True))
    if not dropout or causal or query.shape[1] != key.shape[1] or query.device.type != "cpu":
        attended: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )[0]
        return attended, None
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill_(~attention_mask, float("-inf"))
    return (dropped(scores.softmax(-1), dropout) @ value).transpose(1, 2).contiguous(), None
