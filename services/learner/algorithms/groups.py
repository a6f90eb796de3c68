"""Statistics over the completions of one prompt. Scores are [rows]; rows of one prompt share a number in `groups`."""

from __future__ import annotations

import torch


def group_mean(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Each row's group mean, [rows]."""
    index, counts = _indexed(groups)
    sums = torch.zeros(len(counts), dtype=scores.dtype).index_add(0, index, scores)
    return (sums / counts)[index]


def group_deviation(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Each row's group standard deviation, Bessel-corrected, [rows]; 0 in a group of one."""
    index, counts = _indexed(groups)
    squares = (scores - group_mean(scores, groups)) ** 2
    sums = torch.zeros(len(counts), dtype=scores.dtype).index_add(0, index, squares)
    return (sums / (counts - 1).clamp(min=1)).sqrt()[index]


def leave_one_out(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Each row's score less the mean of the others in its group, [rows]; 0 in a group of one."""
    index, counts = _indexed(groups)
    count = counts[index]
    # r - (n mean - r) / (n - 1) = (r - mean) n / (n - 1)
    return (scores - group_mean(scores, groups)) * count / (count - 1).clamp(min=1)


def group_metrics(scores: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
    """TRL's names: mean and deviation of all scores, and the share of completions in groups without a spread."""
    deviation = group_deviation(scores, groups)
    same = torch.isclose(deviation, torch.zeros_like(deviation))
    return {
        "reward": float(scores.mean()),
        "reward_std": float(scores.std()) if len(scores) > 1 else 0.0,
        "frac_reward_zero_std": float(same.float().mean()),
    }


def _indexed(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's place among the groups, and each group's number of rows."""
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    return index, counts
