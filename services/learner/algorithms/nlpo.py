"""Natural language policy optimisation (arXiv 2210.01241): PPO whose actions a mask bounds.

    allowed(s) = the nucleus of the mask model at s: fewest tokens with probability >= top_p, at least `min_tokens`
    pi(a|s) = softmax(logits where allowed, else -inf)                 sampled from, and in the ratio
    r_t = -beta * k(raw pi_old, pi_ref)_t  + score on the last token   raw: before the mask
    mask model <- policy, every `refresh_every` updates

The mask that a rollout was sampled with travels along, packed, and is used again in the update: the sampled token is
always allowed. In RL4LMs the sampling mask is never refreshed; here it is, and a test holds that.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from services.common.spec.library import NlpoSpec
from services.learner.algorithms.base import Rollouts, Targets
from services.learner.algorithms.ppo import Ppo


class Nlpo(Ppo):
    """PPO, with log-probs of the masked policy in its ratio and those of the raw one in its KL."""

    spec: NlpoSpec

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm. `rollouts.raw_logprobs` must be there."""
        assert rollouts.raw_logprobs is not None  # noqa: S101 - whoever masks has both
        return super().targets(replace(rollouts, old_logprobs=rollouts.raw_logprobs), kl_coefficient)


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


class MaskModel:
    """The copy of the policy whose nucleus bounds it, and when it becomes the policy again."""

    def __init__(self, policy: Any, spec: NlpoSpec) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False)
        self.version = 0
        self._spec = spec

    def updated(self, policy: Any, updates: int) -> bool:
        """Tell it that the policy has had so many updates; whether it has become the policy just now."""
        if updates % self._spec.refresh_every:
            return False
        self.model.load_state_dict(policy.state_dict())
        self.version += 1
        return True

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """The nucleus of its logits, as the settings say."""
        return nucleus(logits, top_p=self._spec.top_p, min_tokens=self._spec.min_tokens)
