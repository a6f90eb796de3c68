"""Trust region policy optimisation (arXiv 1502.05477).

    g = grad L(theta),  L = mean A pi / pi_old                       surrogate, to be raised
    F v = grad (grad KL(pi_old || pi) . v) + damping v                exact categorical KL, second derivative at pi_old
    s = F^-1 g                                                        conjugate gradients
    theta' = theta + c^k sqrt(2 delta / (s . F s)) s                  least k >= 0 with KL <= delta and L higher

and theta stays where no k will do. Everything is a function of one flat vector of parameters, so that a step is a
function too: nothing is changed in place. The critic is fitted apart, by `critic_passes` of the squared error.

The KL needs second derivatives: fused attention has none, eager attention does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from services.common.spec.library import TrpoSpec
from services.learner.algorithms.advantages import generalised_advantages, token_rewards
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.kl import reward_kl
from services.learner.algorithms.masked import masked_mean, whiten

Scalar = Callable[[torch.Tensor], torch.Tensor]
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """theta: the parameters after it, flat. tries: 0 where the gradient is 0. kl, gain: of the step taken, else 0."""

    theta: torch.Tensor
    accepted: bool
    tries: int
    kl: float
    gain: float


class Trpo(Algorithm[TrpoSpec]):
    """Targets, and the critic's loss. The policy's step is `trust_region_step`, which no gradient descent makes."""

    critic = True

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm."""
        return trpo_targets(rollouts, self.spec, kl_coefficient)

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm: mean (V - returns)^2."""
        value = ((current.values - part.targets.returns) ** 2 * part.by_token).sum()
        return Loss(value, {"loss/value_avg": value})


def trpo_targets(rollouts: Rollouts, spec: TrpoSpec, kl_coefficient: float) -> Targets:
    """As A2C's, whitened where the settings say so."""
    mask = rollouts.mask
    kl = reward_kl(spec.kl, rollouts.old_logprobs, rollouts.reference_logprobs, mask)
    rewards = token_rewards(rollouts.scores, kl, mask, kl_coefficient)
    advantages = generalised_advantages(
        rewards, rollouts.old_values, mask, gamma=spec.gamma, lam=spec.gae_lambda
    )
    returns = (advantages + rollouts.old_values) * mask
    if spec.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Targets(
        advantages=advantages, returns=returns, rewards=rewards, kl=kl, kl_coefficient=kl_coefficient
    )


def surrogate(logprobs: torch.Tensor, rollouts: Rollouts, targets: Targets) -> torch.Tensor:
    """L: mean of A pi / pi_old over the tokens that count, a scalar. logprobs: [rows, time], current."""
    ratio = (logprobs - rollouts.old_logprobs).exp()
    return masked_mean(ratio * targets.advantages * rollouts.importance, rollouts.mask)


def categorical_kl(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of KL(old || new), exactly. old, new: log-softmaxes, [rows, time, vocabulary]; a scalar."""
    return masked_mean((old.exp() * (old - new)).sum(-1), mask)


def conjugate_gradient(
    product: Product, goal: torch.Tensor, *, steps: int, least: float = 1e-10
) -> torch.Tensor:
    """x with product(x) = goal for a symmetric positive definite product, after at most `steps` steps from 0."""
    x = torch.zeros_like(goal)
    residual, direction = goal.clone(), goal.clone()
    square = residual @ residual
    for _ in range(steps):
        if square < least:
            break
        along = product(direction)
        size = square / (direction @ along)
        x = x + size * direction
        residual = residual - size * along
        following = residual @ residual
        direction = residual + following / square * direction
        square = following
    return x


def fisher_product(divergence: Scalar, theta: torch.Tensor, damping: float) -> Product:
    """v -> F v + damping v, F the second derivative of the divergence at theta. All flat vectors."""
    point = theta.detach().requires_grad_()
    slope = torch.autograd.grad(divergence(point), point, create_graph=True)[0]

    def product(vector: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(slope @ vector, point, retain_graph=True)[0] + damping * vector

    return product


def trust_region_step(
    theta: torch.Tensor,
    raised: Scalar,
    divergence: Scalar,
    spec: TrpoSpec,
    *,
    curvature: Scalar | None = None,
) -> Step:
    """One step from theta, flat. raised: L at a vector of parameters; divergence: KL(old || there), 0 at theta.

    curvature: the divergence over fewer states, whose second derivative stands for it (section C.1 of the paper).
    """
    point = theta.detach().requires_grad_()
    before = raised(point)
    slope = torch.autograd.grad(before, point)[0]
    if not bool(slope.any()):
        return Step(theta, accepted=False, tries=0, kl=0.0, gain=0.0)
    product = fisher_product(curvature or divergence, theta, spec.damping)
    direction = conjugate_gradient(product, slope, steps=spec.cg_steps)
    longest = torch.sqrt(2 * spec.target_kl / (direction @ product(direction)))
    with torch.no_grad():
        for tried in range(spec.backtracking_steps):
            there = theta + spec.backtracking**tried * longest * direction
            kl, gain = float(divergence(there)), float(raised(there) - before)
            if kl <= spec.target_kl and gain > 0:
                return Step(there, accepted=True, tries=tried + 1, kl=kl, gain=gain)
    return Step(theta, accepted=False, tries=spec.backtracking_steps, kl=0.0, gain=0.0)
