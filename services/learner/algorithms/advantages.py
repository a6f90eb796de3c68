"""From scores and values to advantages and returns. Matrices are [rows, time] float32 with a mask."""

from __future__ import annotations

import torch


def token_rewards(
    scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """r_t = -beta * kl_t on every token, plus the score on the last one (arXiv 1909.08593), [rows, time].

    scores: [rows]; kl: [rows, time], per-token estimate; mask: [rows, time], 1 where a token counts.
    """
    rewards = -coefficient * kl * mask
    # Not the number of ones: there may be masked tokens in the middle (a tool's answer).
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(-1)
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> torch.Tensor:
    """GAE (arXiv 1506.02438): A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.

    The value after the end is 0. All [rows, time]; what is masked out comes back as 0, and the tokens around it
    follow each other.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros(rewards.shape[0], dtype=rewards.dtype)
    running = torch.zeros_like(following)
    for at in reversed(range(rewards.shape[1])):
        counts = mask[:, at] > 0
        delta = rewards[:, at] + gamma * following - values[:, at]
        running = torch.where(counts, delta + gamma * lam * running, running)
        following = torch.where(counts, values[:, at], following)
        advantages[:, at] = running
    return advantages * mask
