"""Proximal policy optimisation (arXiv 1707.06347) as used on language models (arXiv 1909.08593, 2203.02155).

    r_t = -beta * k(pi_old, pi_ref)_t  + score on the last token, or one past it, where a value stands too
    A   = GAE(r, V_old),  returns = A + V_old,  A whitened
    L   = mean max(-A rho, -A clip(rho, 1 - eps, 1 + eps))
        + c_v * mean 1/2 max((V - returns)^2, (clip(V, V_old - eps_v, V_old + eps_v) - returns)^2)
        (+ beta * mean k(pi, pi_ref), where the penalty is placed in the loss)

with rho = pi / pi_old. Means run over the tokens of the whole minibatch, whatever micro-batches it is cut into.
"""

from __future__ import annotations

import torch

from services.common.spec.algorithms import PpoSpec
from services.learner.algorithms.advantages import generalised_advantages, token_rewards
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.clipping import clipped_surrogate
from services.learner.algorithms.kl import loss_kl, reward_kl
from services.learner.algorithms.masked import whiten


class Ppo(Algorithm[PpoSpec]):
    """See the module."""

    critic = True

    @property
    def per_minibatch(self) -> bool:
        """See Algorithm."""
        return self.spec.whiten_scope == "minibatch"

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm."""
        spec, mask, valued = self.spec, rollouts.mask, rollouts.valued
        kl = reward_kl(spec.kl, rollouts.old_logprobs, rollouts.reference_logprobs, mask)
        rewards = token_rewards(rollouts.scores, kl, valued, kl_coefficient)
        if spec.whiten_rewards:
            rewards = whiten(rewards, valued, keep_mean=True, form=spec.whitening)
        advantages = generalised_advantages(
            rewards, rollouts.old_values, valued, gamma=spec.gamma, lam=spec.gae_lambda
        )
        returns = (advantages + rollouts.old_values) * valued
        # The position past the end has a return, but no action whose advantage it could be.
        advantages = (
            whiten(advantages, mask, form=spec.whitening) if spec.whiten_advantages else advantages * mask
        )
        return Targets(
            advantages=advantages,
            returns=returns,
            rewards=rewards,
            kl=kl,
            kl_coefficient=kl_coefficient,
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        spec, weights = self.spec, part.by_value
        policy, metrics = policy_loss(current, part, spec.clip_ratio)
        squared, clipped = value_error(
            current.values, part, spec.clip_value, clip=spec.value_loss == "clipped"
        )
        value = (squared * weights).sum()
        total = policy + spec.value_coefficient * value
        kl = loss_kl(spec.kl, current.logprobs, part.rollouts.reference_logprobs)
        if kl is not None:
            total = total + part.targets.kl_coefficient * (kl * part.by_token).sum()
        metrics |= {"loss/value_avg": value, "val/clipfrac_avg": (clipped * weights).sum()}
        return Loss(total, metrics)


def policy_loss(current: Current, part: Part, clip: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate over the part's tokens, and what TRL's PPO tells of it."""
    targets, weights = part.targets, part.by_token
    log_ratio = current.logprobs - part.rollouts.old_logprobs
    ratio = log_ratio.exp()
    surrogate = clipped_surrogate(ratio, targets.advantages, clip, clip)
    policy = (surrogate * part.rollouts.importance * weights).sum()
    decided = (surrogate > -targets.advantages * ratio).float()
    return policy, {
        "loss/policy_avg": policy,
        "policy/clipfrac_avg": (decided * weights).sum(),
        "policy/approxkl_avg": (0.5 * log_ratio**2 * weights).sum(),
        "val/ratio": (ratio * weights).sum(),
    }


def value_error(
    values: torch.Tensor, part: Part, clip_value: float, *, clip: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's value error, and 1 where the clip decided; without `clip` the plain square, as in RL4LMs."""
    returns, old = part.targets.returns, part.rollouts.old_values
    squared = (values - returns) ** 2
    if not clip:
        return squared, torch.zeros_like(squared)
    bounded = (old + (values - old).clamp(-clip_value, clip_value) - returns) ** 2
    return 0.5 * torch.maximum(squared, bounded), (bounded > squared).float()
