"""Best of n, and rejection fine-tuning on it (arXiv 2110.14168, 2308.01825).

    kept = the `keep` best completions of each prompt, of those that score at least `at_least`; of equals the first
    L    = mean over the kept completions' tokens of -log pi
    KL(best of n || policy) <= log n - (n - 1) / n                              arXiv 2009.01325, 2401.01879

Written as advantages: all tokens over the kept ones where a completion is kept, else 0. So the weight of a token does
not depend on which kept completions share its minibatch either.
"""

from __future__ import annotations

import math

import torch

from services.common.spec.algorithms import RftSpec
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets
from services.learner.algorithms.groups import group_metrics


class Rft(Algorithm[RftSpec]):
    """See the module."""

    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """See Algorithm."""
        mask, scores = rollouts.mask, rollouts.scores
        chosen = kept(scores, rollouts.groups, keep=self.spec.keep, at_least=self.spec.at_least)
        cloned = mask * chosen[:, None]
        rewards = scores[:, None] * mask
        return Targets(
            advantages=cloned * (mask.sum() / cloned.sum().clamp(min=1)),
            returns=rewards,
            rewards=rewards,
            kl=torch.zeros_like(mask),
            kl_coefficient=kl_coefficient,
            metrics=group_metrics(scores, rollouts.groups) | {"rft/kept": float(chosen.float().mean())},
        )

    def loss(self, current: Current, part: Part) -> Loss:
        """See Algorithm."""
        importance = part.rollouts.importance
        policy = (-part.targets.advantages * current.logprobs * importance * part.by_token).sum()
        return Loss(policy, {"loss/policy_avg": policy})


def kept(scores: torch.Tensor, groups: torch.Tensor, *, keep: int, at_least: float | None) -> torch.Tensor:
    """Which completions are kept, bool [rows]."""
    # By group, then by score from the top, then by place: both sorts are stable.
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    ranks = torch.cat([torch.arange(int(size)) for size in sizes])
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[order] = ranks < keep
    return chosen if at_least is None else chosen & (scores >= at_least)


def best_of_n_kl(n: int) -> float:
    """How far the best of n lies from the policy at most, nats."""
    return math.log(n) - (n - 1) / n
