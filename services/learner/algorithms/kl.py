"""KL between policy and reference: estimators from sampled tokens, and the controllers of its coefficient.

Estimators (Schulman, "Approximating KL divergence", 2020), with x = log pi - log pi_ref at a sampled token:
k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.common.spec.run import KlSpec


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


@dataclass(frozen=True, slots=True)
class KlController:
    """The coefficient beta. Immutable: `updated` gives the next one, so that a checkpoint is one number."""

    spec: KlSpec
    coefficient: float

    @classmethod
    def start(cls, spec: KlSpec) -> KlController:
        """At the configured coefficient."""
        return cls(spec, spec.coefficient)

    def updated(self, sequence_kl: float, episodes: int) -> KlController:
        """Adaptive: e = clip(KL / target - 1, -0.2, 0.2); beta *= 1 + e * n / horizon (arXiv 1909.08593, 2.2).

        sequence_kl: mean over episodes of the KL summed over the sequence, nats. Fixed: unchanged. `lowest` bounds
        beta from below: a run begins at KL 0, far below any target, and would give its penalty away meanwhile.
        """
        if self.spec.kind == "fixed":
            return self
        error = min(max(sequence_kl / self.spec.target - 1, -0.2), 0.2)
        coefficient = self.coefficient * (1 + error * episodes / self.spec.horizon)
        return KlController(self.spec, max(coefficient, self.spec.lowest))
