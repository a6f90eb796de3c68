"""KL between policy and reference: estimators from sampled tokens, and the controllers of its coefficient.

Estimators (Schulman, "Approximating KL divergence", 2020), with x = log pi - log pi_ref at a sampled token:
k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from services.common.spec.algorithms import KlSpec


def k1(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Unbiased, may be negative: log-ratio per token, same shape."""
    return logprobs - reference


def k2(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Half the squared log-ratio per token, same shape."""
    return 0.5 * (logprobs - reference) ** 2


def k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Unbiased and never negative, same shape."""
    ratio = reference - logprobs
    return torch.expm1(ratio) - ratio


ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def reward_kl(
    spec: KlSpec, logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Per-token KL that is taken from the rewards; 0 where the penalty stands in the loss. [rows, time]."""
    if spec.placement == "loss":
        return torch.zeros_like(logprobs)
    return ESTIMATORS[spec.estimator](logprobs, reference) * mask


def loss_kl(spec: KlSpec, logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor | None:
    """Per-token KL that is added to the loss, with its gradient; None where the penalty stands in the reward."""
    return ESTIMATORS[spec.estimator](logprobs, reference) if spec.placement == "loss" else None


def measured_kl(spec: KlSpec, logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> float:
    """What an adaptive coefficient is held against: mean over completions of the sum, or mean over tokens."""
    kl = ESTIMATORS[spec.measured](logprobs, reference) * mask
    return float(kl.sum() / mask.sum().clamp(min=1)) if spec.per_token else float(kl.sum(-1).mean())


@dataclass(frozen=True, slots=True)
class KlController:
    """The coefficient beta. Immutable: `updated` gives the next one, so that a checkpoint is one number."""

    spec: KlSpec
    coefficient: float

    @classmethod
    def start(cls, spec: KlSpec) -> KlController:
        """At the configured coefficient."""
        return cls(spec, spec.coefficient)

    def updated(self, kl: float, episodes: int) -> KlController:
        """Adaptive: e = clip(KL / target - 1, -0.2, 0.2); beta *= 1 + e * n / horizon (arXiv 1909.08593, 2.2).

        kl: of the last batch, nats, as `measured_kl` gives it. A `gain` stands for n / horizon. Fixed: unchanged.
        `lowest` bounds beta from below: a run begins at KL 0, far below any target, and would give its penalty away
        meanwhile.
        """
        if self.spec.kind == "fixed":
            return self
        error = min(max(kl / self.spec.target - 1, -0.2), 0.2)
        gain = episodes / self.spec.horizon if self.spec.gain is None else self.spec.gain
        coefficient = self.coefficient * (1 + error * gain)
        return KlController(self.spec, max(coefficient, self.spec.lowest))
