"""Proximal policy optimisation (arXiv 1707.06347) as used on language models (arXiv 1909.08593, 2203.02155).

    r_t = -beta * (log pi_old - log pi_ref)_t  + score on the last token
    A   = GAE(r, V_old),  returns = A + V_old,  A whitened
    L   = mean max(-A rho, -A clip(rho, 1 - eps, 1 + eps))
        + c_v * mean 1/2 max((V - returns)^2, (clip(V, V_old - eps_v, V_old + eps_v) - returns)^2)

with rho = pi / pi_old. Means run over the tokens of the whole batch, whatever micro-batches it is cut into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.common.spec.run import PpoSpec
from services.learner.algorithms.advantages import generalised_advantages, token_rewards
from services.learner.algorithms.kl import k1
from services.learner.algorithms.masked import whiten


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a batch of completions brings. [rows, time] float32 but for scores, [rows]."""

    old_logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    old_values: torch.Tensor
    mask: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """What the losses aim at, [rows, time] float32."""

    advantages: torch.Tensor
    returns: torch.Tensor
    rewards: torch.Tensor
    kl: torch.Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over tokens, to be divided by the number of tokens of the whole batch; scalars."""

    policy: torch.Tensor
    value: torch.Tensor
    clipped: torch.Tensor
    value_clipped: torch.Tensor
    approx_kl: torch.Tensor
    ratio: torch.Tensor


def targets(rollouts: Rollouts, spec: PpoSpec, kl_coefficient: float) -> Targets:
    """Rewards, advantages and returns of a batch, once, before the first update."""
    mask = rollouts.mask
    kl = k1(rollouts.old_logprobs, rollouts.reference_logprobs) * mask
    rewards = token_rewards(rollouts.scores, kl, mask, kl_coefficient)
    if spec.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages = generalised_advantages(
        rewards, rollouts.old_values, mask, gamma=spec.gamma, lam=spec.gae_lambda
    )
    returns = (advantages + rollouts.old_values) * mask
    if spec.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Targets(advantages, returns, rewards, kl)


def losses(
    logprobs: torch.Tensor,
    values: torch.Tensor,
    old_logprobs: torch.Tensor,
    old_values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    spec: PpoSpec,
) -> Losses:
    """Clipped surrogate and clipped value loss, summed over the tokens given, all [tokens] float32."""
    ratio = torch.exp(logprobs - old_logprobs)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - spec.clip_ratio, 1 + spec.clip_ratio)
    bounded = old_values + (values - old_values).clamp(-spec.clip_value, spec.clip_value)
    squared, squared_bounded = (values - returns) ** 2, (bounded - returns) ** 2
    return Losses(
        policy=(torch.maximum(plain, clipped) * mask).sum(),
        value=0.5 * (torch.maximum(squared, squared_bounded) * mask).sum(),
        clipped=((clipped > plain) * mask).sum().detach(),
        value_clipped=((squared_bounded > squared) * mask).sum().detach(),
        approx_kl=(0.5 * (logprobs - old_logprobs) ** 2 * mask).sum().detach(),
        ratio=(ratio * mask).sum().detach(),
    )
