"""Which tokens may be drawn (NLPO): the nucleus of a mask model, and masks as bits. Tensors in, tensors out.

The policy bounds what it draws by them, the learner its log-probs; what was drawn with travels along, packed.
"""

from __future__ import annotations

import torch

MASK_COMPONENT = "mask_model"
"""The mask model's tensors among published weights, each by the policy's name for it."""


def nucleus(logits: torch.Tensor, *, top_p: float, min_tokens: int) -> torch.Tensor:
    """Which tokens are allowed, bool [..., vocabulary]: the likeliest until top_p is reached, `min_tokens` at least.

    Among equals the lower id comes first.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    likely = logits.softmax(-1).gather(-1, order)
    before = likely.cumsum(-1) - likely
    rank = torch.arange(logits.shape[-1], device=logits.device).expand_as(order)
    kept = (before < top_p) | (rank < min_tokens)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def masked_logits(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """-inf where a token is not allowed."""
    return logits.masked_fill(~allowed, -torch.inf)


def packed(allowed: torch.Tensor) -> torch.Tensor:
    """Eight tokens a byte, uint8 [..., ceil(vocabulary / 8)], the first in the lowest bit."""
    missing = -allowed.shape[-1] % 8
    bits = torch.nn.functional.pad(allowed.to(torch.uint8), (0, missing))
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=allowed.device)
    return (bits.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def unpacked(mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The inverse of `packed`, bool [..., vocabulary]."""
    bits = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return ((mask[..., None] >> bits) & 1).flatten(-2)[..., :vocabulary].bool()
