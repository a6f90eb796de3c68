"""Losses by hand: ranked with and without a margin, binary, best of N."""

from __future__ import annotations

import math

import pytest
import torch

from services.learner.jobs.comparisons import Choice, Compared, Win
from services.learner.jobs.losses import said, said_loss

SCORES = torch.tensor([1.0, 0.5, -1.0, 2.0, 2.5])
FIRST = Compared(messages=(), answers=("a", "b", "c"), wins=(Win(0, 1), Win(0, 2), Win(1, 2)))
SECOND = Compared(messages=(), answers=("d", "e"), wins=(Win(0, 1, 0.25),))
BEST = Compared(messages=(), answers=("a", "b", "c"), choices=(Choice(1, (0, 1, 2)),))


def nll(difference: float) -> float:
    return math.log1p(math.exp(-difference))


def test_all_pairs_of_a_ranking_count() -> None:
    """Differences 0.5, 2, 1.5 of three answers, and -0.5 less a margin of 0.25 of two, whose scores stand after."""
    expected = nll(0.5) + nll(2.0) + nll(1.5) + nll(-0.75)
    assert float(said_loss(SCORES, [FIRST, SECOND], "ranked")) == pytest.approx(expected, rel=1e-6)
    assert said([FIRST, SECOND], "ranked") == 4


def test_a_ranking_is_the_mean_over_its_pairs() -> None:
    """Three pairs of weight a third beside a comparison: half of the loss each; binary in the same proportion."""
    thirds = Compared(
        messages=(), answers=("a", "b", "c"), wins=tuple(win._replace(weight=1 / 3) for win in FIRST.wins)
    )
    expected = (nll(0.5) + nll(2.0) + nll(1.5)) / 3 + nll(-0.75)
    assert float(said_loss(SCORES, [thirds, SECOND], "ranked")) == pytest.approx(expected, rel=1e-6)
    assert said([thirds, SECOND], "ranked") == pytest.approx(2)
    apart = (nll(1.0) + nll(-0.5)) + (nll(1.0) + nll(1.0)) + (nll(0.5) + nll(1.0))
    expected = apart / 6 + (nll(2.0) + nll(-2.5)) / 2
    assert float(said_loss(SCORES, [thirds, SECOND], "binary")) == pytest.approx(expected, rel=1e-6)


def test_the_best_of_n_is_a_softmax() -> None:
    """-log(e^0.5 / (e^1 + e^0.5 + e^-1)), one statement."""
    expected = math.log(math.exp(1.0) + math.exp(0.5) + math.exp(-1.0)) - 0.5
    assert float(said_loss(SCORES[:3], [BEST], "ranked")) == pytest.approx(expected, rel=1e-6)
    assert said([BEST], "ranked") == 1


def test_binary_judges_each_answer_alone() -> None:
    """Half of what the better one and the worse one lack; a best one beats each other, in the mean over them."""
    expected = (nll(0.5) + nll(-1.0) + nll(0.5) + nll(1.0)) / 2 / 2
    assert float(said_loss(SCORES[:3], [BEST], "binary")) == pytest.approx(expected, rel=1e-6)
    assert said([BEST], "binary") == 1
