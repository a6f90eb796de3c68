"""What a comparison says about a lead, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.preference.outcomes import entropy, information, shares


def test_shares_by_hand() -> None:
    """A lead of log 4 is won 4 to 1; seen through reliability 0.9 that is 0.74; a tie of nu 2 at no lead is 1/2."""
    lead = np.array([math.log(4)])
    assert shares(lead)[:, 0] == pytest.approx([0.8, 0.2, 0.0])
    assert shares(lead, reliability=0.9)[:, 0] == pytest.approx([0.9 * 0.8 + 0.1 * 0.2, 0.26, 0.0])
    assert shares(np.zeros(1), tie=2.0)[:, 0] == pytest.approx([0.25, 0.25, 0.5])
    assert shares(np.array([-2000.0]), tie=1.0)[:, 0] == pytest.approx([0.0, 1.0, 0.0])


@pytest.mark.parametrize(("tie", "reliability"), [(0.0, 1.0), (0.0, 0.8), (0.7, 1.0), (0.7, 0.8), (0.0, 0.1)])
def test_information_is_the_expected_squared_score(tie: float, reliability: float) -> None:
    """Fisher information is the mean of the squared slope of the log-probability, here by differences."""
    lead, step = np.array([-1.3, 0.0, 0.4, 3.0]), 1e-5
    at = shares(lead, tie, reliability)
    slope = (shares(lead + step, tie, reliability) - shares(lead - step, tie, reliability)) / (2 * step)
    expected = np.where(at > 0, slope**2 / np.maximum(at, 1e-12), 0.0).sum(axis=0)
    assert information(lead, tie, reliability) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_where_all_were_ties() -> None:
    """An infinite tie leaves nobody a win, whatever the lead, and an answer tells nothing about it."""
    lead = np.array([0.0, 1.5, -3000.0])
    for reliability in (1.0, 0.8):
        assert shares(lead, math.inf, reliability).tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
        assert information(lead, math.inf, reliability).tolist() == [0.0] * 3


def test_who_guesses_tells_nothing() -> None:
    """p (1 - p) from a perfect annotator, 1/4 at most; nothing from one who answers at random."""
    assert information(np.zeros(1)) == pytest.approx([0.25])
    assert information(np.array([math.log(4)])) == pytest.approx([0.16])
    assert information(np.array([0.0, 2.0]), reliability=0.5) == pytest.approx([0.0, 0.0])


def test_entropy_by_hand() -> None:
    """log 2 for a fair coin, 0 for what is certain."""
    assert entropy(np.array([[0.5, 1.0], [0.5, 0.0], [0.0, 0.0]])) == pytest.approx([math.log(2), 0.0])
