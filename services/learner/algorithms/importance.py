"""Correction for rollouts that another policy, or another engine, has sampled.

With rho = pi_old / pi_behaviour, by token or as the product over a completion:

    truncated   min(max(rho, low), high)                        (truncated importance sampling)
    masked      rho where low <= rho <= high, else 0            (IcePop by token; TRL's sequence_mask)

The factor multiplies each token's policy loss. Together with a ratio against pi_old this is decoupled PPO
(arXiv 2110.00641): behaviour, proximal and current policies stay apart.
"""

from __future__ import annotations

import torch

from services.common.spec.algorithms import ImportanceSpec


def importance(
    spec: ImportanceSpec, old: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The factor of each token, [rows, time] float32; 1 for mode none."""
    if spec.mode == "none":
        return torch.ones_like(old)
    level, _, kind = spec.mode.partition("_")
    logs = (old - behaviour) * mask
    if level == "sequence":
        logs = logs.sum(-1, keepdim=True)
    ratio = logs.exp()
    low, high = spec.bounds
    if kind == "truncate":
        return ratio.clamp(low, high).expand_as(old)
    # Not a product with the mask: far off a ratio is infinite, and 0 times that no number.
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0).expand_as(old)


def importance_metrics(factors: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """TRL's names: least, mean and greatest factor over the tokens that count."""
    kept = factors[mask > 0]
    if not kept.numel():
        return {}
    name = "sampling/importance_sampling_ratio"
    return {
        f"{name}/min": float(kept.min()),
        f"{name}/mean": float(kept.mean()),
        f"{name}/max": float(kept.max()),
    }
