"""Advantage actor-critic (arXiv 1602.01783) as RL4LMs (arXiv 2210.01241) runs it on language models.

    r_t = -beta * k(pi_old, pi_ref)_t  + score on the last token
    A   = GAE(r, V), lambda 1: the return less the value;  returns = A + V
    L   = mean(-A log pi) + c_v * mean (V - returns)^2

One step over the batch: there is no ratio and no clip.
"""

from __future__ import annotations

from services.common.spec.algorithms import A2cSpec
from services.learner.algorithms.advantages import generalised_advantages, token_rewards
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.kl import loss_kl, reward_kl
from services.learner.algorithms.masked import whiten
from services.learner.algorithms.ppo import value_error


class A2c(Algorithm[A2cSpec]):
    """See the module."""

    critic = True

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm."""
        spec, mask = self.spec, rollouts.mask
        kl = reward_kl(spec.kl, rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        rewards = token_rewards(rollouts.scores, kl, mask, kl_coefficient)
        advantages = generalised_advantages(
            rewards, rollouts.old_values, mask, gamma=spec.gamma, lam=spec.gae_lambda
        )
        returns = (advantages + rollouts.old_values) * mask
        if spec.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Targets(
            advantages=advantages,
            returns=returns,
            rewards=rewards,
            kl=kl,
            kl_coefficient=kl_coefficient,
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        spec, targets, weights = self.spec, part.targets, part.by_token
        policy = (-targets.advantages * current.logprobs * part.rollouts.importance * weights).sum()
        squared, _ = value_error(current.values, part, 0.0, clip=False)
        value = (squared * weights).sum()
        total = policy + spec.value_coefficient * value
        kl = loss_kl(spec.kl, current.logprobs, part.rollouts.reference_logprobs)
        if kl is not None:
            total = total + targets.kl_coefficient * (kl * weights).sum()
        return Loss(total, {"loss/policy_avg": policy, "loss/value_avg": value})
