"""REINFORCE++ (arXiv 2501.03262): PPO's clip without a critic.

r_t = -beta * k(pi_old, pi_ref)_t  + score on the last token (less the prompt's mean: REINFORCE++-baseline)
A_t = sum_{l >= t} gamma^(l - t) r_l, normalised over all tokens of the batch with the biased variance
L   = mean max(-A rho, -A clip(rho, 1 - eps, 1 + eps))  (+ beta * mean k(pi, pi_ref))
"""

from __future__ import annotations

import torch

from services.common.spec.algorithms import ReinforcePlusPlusSpec
from services.learner.algorithms.advantages import generalised_advantages, token_rewards
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.groups import group_mean
from services.learner.algorithms.kl import loss_kl, reward_kl
from services.learner.algorithms.masked import whiten
from services.learner.algorithms.ppo import policy_loss


class ReinforcePlusPlus(Algorithm[ReinforcePlusPlusSpec]):
    """See the module."""

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm."""
        spec, mask, scores = self.spec, rollouts.mask, rollouts.scores
        if spec.baseline:
            scores = scores - group_mean(scores, rollouts.groups)
        kl = reward_kl(spec.kl, rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        rewards = token_rewards(scores, kl, mask, kl_coefficient)
        # Without values and with lambda 1, GAE is the discounted sum of what follows.
        returns = generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma=spec.gamma, lam=1.0)
        return Targets(
            advantages=whiten(returns, mask, form="biased"),
            returns=returns,
            rewards=rewards,
            kl=kl,
            kl_coefficient=kl_coefficient,
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        total, metrics = policy_loss(current, part, self.spec.clip_ratio)
        kl = loss_kl(self.spec.kl, current.logprobs, part.rollouts.reference_logprobs)
        if kl is not None:
            total = total + part.targets.kl_coefficient * (kl * part.by_token).sum()
        return Loss(total, metrics)
