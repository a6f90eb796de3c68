"""Direct preference optimisation (arXiv 2305.18290), sigmoid loss.

    d = (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)      sums over the completion
    L = mean over comparisons of -(1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d)

eps: the share of wrong comparisons, 0 by default (cDPO). Reference log-probs may be computed once, beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from services.common.spec.library import DpoSpec
from services.learner.algorithms.base import Loss


@dataclass(frozen=True, slots=True)
class Pair:
    """Log-probs of one side of the comparisons, summed over each completion's tokens, [comparisons]."""

    policy: torch.Tensor
    reference: torch.Tensor

    @property
    def log_ratio(self) -> torch.Tensor:
        """log pi - log pi_ref."""
        return self.policy - self.reference


def dpo_loss(chosen: Pair, rejected: Pair, spec: DpoSpec, *, comparisons: int) -> Loss:
    """The part's share of the loss; `comparisons` is the number of the whole batch."""
    margin = chosen.log_ratio - rejected.log_ratio
    losses = -(1 - spec.label_smoothing) * logsigmoid(spec.beta * margin) - spec.label_smoothing * logsigmoid(
        -spec.beta * margin
    )
    total = losses.sum() / comparisons
    rewards = spec.beta * chosen.log_ratio, spec.beta * rejected.log_ratio
    return Loss(
        total,
        {
            "rewards/chosen": rewards[0].sum() / comparisons,
            "rewards/rejected": rewards[1].sum() / comparisons,
            "rewards/margins": (rewards[0] - rewards[1]).sum() / comparisons,
            "rewards/accuracies": (margin > 0).float().sum() / comparisons,
            "logps/chosen": chosen.policy.sum() / comparisons,
            "logps/rejected": rejected.policy.sum() / comparisons,
        },
    )


def sequence_logprobs(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums over each completion's tokens, [rows]."""
    return (logprobs * mask).sum(-1)
