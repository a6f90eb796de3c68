"""Losses on the scores of a prompt's answers. Pure: scores and what was said in, a sum out.

    ranked      -log sigmoid(r_better - r_worse - margin); of a ranking of K answers the mean over its pairs, so that
                a longer one does not count for more                         (arXiv 2203.02155; margin: 2307.09288)
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
    better, worse, margins, weights = [], [], [], []
    total = scores.new_zeros(())
    start = 0
    for prompt in prompts:
        wins = prompt.pairs() if objective == "binary" else prompt.wins
        better += [start + win.better for win in wins]
        worse += [start + win.worse for win in wins]
        margins += [win.margin or 0.0 for win in wins]
        weights += [win.weight for win in wins]
        if objective == "ranked":
            for choice in prompt.choices:
                among = scores[[start + index for index in choice.among]]
                total = total - torch.log_softmax(among, 0)[choice.among.index(choice.best)]
        start += len(prompt.answers)
    if not better:
        return total
    weighed = scores.new_tensor(weights)
    log_sigmoid = torch.nn.functional.logsigmoid
    if objective == "binary":
        apart = log_sigmoid(scores[better]) + log_sigmoid(-scores[worse])
        return total - (weighed * apart).sum() / 2
    differences = scores[better] - scores[worse]
    if any(margins):
        differences = differences - scores.new_tensor(margins)
    return total - (weighed * log_sigmoid(differences)).sum()


def said(prompts: Sequence[Compared], objective: Objective) -> float:
    """What that sum is a sum of, by weight: what a mean divides by."""
    wins = (win for prompt in prompts for win in (prompt.pairs() if objective == "binary" else prompt.wins))
    choices = 0 if objective == "binary" else sum(len(prompt.choices) for prompt in prompts)
    return sum(win.weight for win in wins) + choices
