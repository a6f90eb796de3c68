"""Losses on the scores of a prompt's answers. Pure: scores and what was said in, a sum out.

    ranked      -log sigmoid(r_better - r_worse - margin)                    (arXiv 2203.02155; margin: 2307.09288)
    binary      each answer alone, good or bad: half of -log sigmoid(r_better) - log sigmoid(-r_worse)
                (preference-model pretraining, arXiv 2112.00861, 4.2)
    best of N   -log softmax over the N at the best                          (arXiv 1909.08593)

The same answers' scores serve all pairs that they are part of: K answers are K scores and K(K-1)/2 terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from services.learner.jobs.comparisons import Compared

Objective = Literal["ranked", "binary"]


def said_loss(scores: torch.Tensor, prompts: Sequence[Compared], objective: Objective) -> torch.Tensor:
    """Sum over all that was said; scores: [answers of all prompts, one after the other] float32."""
    better, worse, margins = [], [], []
    total = scores.new_zeros(())
    start = 0
    for prompt in prompts:
        wins = prompt.pairs() if objective == "binary" else prompt.wins
        better += [start + win.better for win in wins]
        worse += [start + win.worse for win in wins]
        margins += [win.margin for win in wins]
        if objective == "ranked":
            for choice in prompt.choices:
                among = scores[[start + index for index in choice.among]]
                total = total - torch.log_softmax(among, 0)[choice.among.index(choice.best)]
        start += len(prompt.answers)
    if not better:
        return total
    if objective == "binary":
        apart = torch.nn.functional.logsigmoid(scores[better]) + torch.nn.functional.logsigmoid(
            -scores[worse]
        )
        return total - apart.sum() / 2
    differences = scores[better] - scores[worse]
    if any(margins):
        differences = differences - torch.tensor(margins, dtype=scores.dtype, device=scores.device)
    return total - torch.nn.functional.logsigmoid(differences).sum()


def said(prompts: Sequence[Compared], objective: Objective) -> int:
    """How many terms that sum has: what a mean divides by."""
    return sum(len(prompt.pairs()) if objective == "binary" else prompt.statements for prompt in prompts)
