"""The benchmark of ratings: its arithmetic by hand, and the same measurement on a small campaign."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ratings import Outcome, figures, measure
from benchmarks.ratings_world import Campaign, World, kendall_tau, labels_to_reach


def test_kendalls_tau_by_hand() -> None:
    """One exchange of neighbours among four leaves 5 of 6 pairs as they were: (5 - 1) / 6."""
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(truth, truth) == 1
    assert kendall_tau(-truth, truth) == -1
    assert kendall_tau(np.array([1.0, 3.0, 2.0, 4.0]), truth) == pytest.approx(4 / 6)


def test_a_lucky_look_does_not_count() -> None:
    """The target must be reached at two looks in a row; the first of them counts."""
    curve = [(100, 0.5), (200, 0.9), (300, 0.8), (400, 0.9), (500, 0.95)]
    assert labels_to_reach(curve, 0.9) == 400
    assert labels_to_reach(curve, 0.95) is None
    assert labels_to_reach([], 0.1) is None


def test_figures_by_hand() -> None:
    """Means, and the worst: the least tau and the largest share of labels."""
    outcomes = [
        Outcome(tau=0.8, tau_weighted=0.9, found=True, active_label_share=0.25),
        Outcome(tau=0.9, tau_weighted=0.92, found=False, active_label_share=0.5),
    ]
    assert figures(outcomes, "_x") == pytest.approx(
        {
            "tau_x": 0.85,
            "tau_x_worst": 0.8,
            "tau_weighted_x": 0.91,
            "tau_weighted_x_worst": 0.9,
            "guessing_found_x": 0.5,
            "active_label_share_x": 0.375,
            "active_label_share_x_worst": 0.5,
        }
    )


def test_the_simulation_is_as_stated() -> None:
    """Of 20,000 answers 0.85 * 0.8 + 0.15 * 0.5 name the stronger item; drawn from Bradley-Terry fewer do."""
    right = []
    for spread in (None, 1.0):
        campaign = Campaign(World(spread=spread), seed=1)
        campaign.ask(campaign.random_pairs(20_000))
        votes = campaign.votes
        stronger = campaign.strengths[votes.first] > campaign.strengths[votes.second]
        right.append(float(np.mean((votes.score == 1) == stronger)))
        assert len(campaign.guessing) == 3
    assert right[0] == pytest.approx(0.755, abs=0.012)
    # How often the stronger one wins is the mean over leads, normal with variance 2; then it is reported as above.
    lead = np.abs(np.random.default_rng(0).normal(0, 2**0.5, 1_000_000))
    kept = float(np.mean(1 / (1 + np.exp(-lead))))
    assert right[1] == pytest.approx(0.245 + 0.51 * kept, abs=0.015)


def test_a_small_campaign() -> None:
    """60 items, 8 annotators of whom one guesses, 20 % flips: order and guesser are found, choosing saves 40 %."""
    world = World(items=60, annotators=8, guessing=1, labels=4000, batch=50, check=250)
    outcome = measure(world, seed=1)
    assert outcome.tau >= 0.85
    assert outcome.tau_weighted >= 0.9
    assert outcome.found
    assert outcome.active_label_share <= 0.6
