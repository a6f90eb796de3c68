"""REINFORCE leave-one-out (arXiv 2402.14740), as in TRL: the completion is one action.

R_i = score_i - beta * sum_t log(pi_old / pi_ref)_t
A_i = R_i - mean of the other R_j of the prompt
L   = mean over completions of max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),  rho = exp(sum_t log(pi / pi_old)_t)
"""

from __future__ import annotations

from services.common.spec.algorithms import RlooSpec
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.clipping import clip_metrics, clipped_surrogate
from services.learner.algorithms.groups import group_metrics, leave_one_out
from services.learner.algorithms.kl import reward_kl


class Rloo(Algorithm[RlooSpec]):
    """See the module."""

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm. The same advantage on every token of a completion."""
        spec, mask = self.spec, rollouts.mask
        kl = reward_kl(spec.penalty, rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        rewards = rollouts.scores - kl_coefficient * kl.sum(-1)
        advantages = leave_one_out(rewards, rollouts.groups)
        if spec.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
        return Targets(
            advantages=advantages[:, None] * mask,
            returns=rewards[:, None] * mask,
            rewards=rewards[:, None] * mask,
            kl=kl,
            kl_coefficient=kl_coefficient,
            metrics=group_metrics(rollouts.scores, rollouts.groups),
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        spec, targets, mask, weights = self.spec, part.targets, part.rollouts.mask, part.by_row
        log_ratio = ((current.logprobs - part.rollouts.old_logprobs) * mask).sum(-1, keepdim=True)
        ratio = log_ratio.exp()
        surrogate = clipped_surrogate(ratio, targets.advantages, spec.epsilon, spec.high)
        policy = (surrogate * part.rollouts.importance * weights).sum()
        return Loss(
            policy,
            {
                "loss/policy_avg": policy,
                "policy/approxkl_avg": (0.5 * log_ratio**2 * weights).sum(),
                "val/ratio": (ratio * weights).sum(),
                **clip_metrics(ratio, targets.advantages, spec.epsilon, spec.high, weights, mask),
            },
        )
