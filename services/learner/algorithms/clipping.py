"""The clipped surrogate that PPO, REINFORCE++, RLOO and NLPO share (arXiv 1707.06347, equation 7), and its metrics."""

from __future__ import annotations

import torch


def clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)), the shape that ratio and advantages have together."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def clip_share(
    ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 where the lower clip decides, and 1 where the upper does, float32."""
    return (
        ((ratio < 1 - low) & (advantages < 0)).float(),
        ((ratio > 1 + high) & (advantages > 0)).float(),
    )


def clip_metrics(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    weights: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """TRL's `clip_ratio/*`: means by `weights`, and the completions with the least and the most clipped tokens."""
    below, above = (share.expand_as(mask) for share in clip_share(ratio, advantages, low, high))
    lengths = mask.sum(-1).clamp(min=1)
    return {
        "clip_ratio/low_mean": (below * weights).sum(),
        "clip_ratio/high_mean": (above * weights).sum(),
        "clip_ratio/region_mean": ((below + above) * weights).sum(),
        "clip_ratio/low_min": ((below * mask).sum(-1) / lengths).min(),
        "clip_ratio/high_max": ((above * mask).sum(-1) / lengths).max(),
    }
