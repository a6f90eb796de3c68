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
from services.models.action_masks import masked_logits, nucleus, packed, unpacked

__all__ = ["MaskModel", "Nlpo", "masked_logits", "nucleus", "packed", "unpacked"]


class Nlpo(Ppo):
    """PPO, with log-probs of the masked policy in its ratio and those of the raw one in its KL."""

    spec: NlpoSpec

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm. `rollouts.raw_logprobs` must be there."""
        assert rollouts.raw_logprobs is not None  # noqa: S101 - whoever masks has both
        return super().targets(replace(rollouts, old_logprobs=rollouts.raw_logprobs), kl_coefficient)


class MaskModel:
    """The copy of the policy whose nucleus bounds it, and when it becomes the policy again."""

    def __init__(self, policy: Any, spec: NlpoSpec) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False)
        self.version = 0
        self._spec = spec
        self._updates = 0

    def updated(self, policy: Any, updates: int) -> bool:
        """Tell it that the policy has had so many updates in all; whether it has become the policy just now.

        Told of several at once, it becomes the policy where the last multiple of `refresh_every` is among them.
        """
        every = self._spec.refresh_every
        due = updates // every > self._updates // every
        self._updates = updates
        if due:
            self.model.load_state_dict(policy.state_dict())
            self.version += 1
        return due

    def restore(self, state: dict[str, Any], *, version: int, updates: int) -> None:
        """As it was after so many updates, its weights included."""
        self.model.load_state_dict(state)
        self.version, self._updates = version, updates

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """The nucleus of its logits, as the settings say."""
        return nucleus(logits, top_p=self._spec.top_p, min_tokens=self._spec.min_tokens)
