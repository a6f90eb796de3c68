"""Ratings against values worked out by hand and against a simulated truth."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.preference.bradley_terry import PairCounts, fit_bradley_terry
from services.preference.ratings import (
    Game,
    Games,
    RatingMethod,
    bradley_terry,
    count_pairs,
    elo_averaged,
    elo_online,
    expected_score,
    rate,
)


def pair(wins: float, losses: float, ties: float) -> PairCounts:
    one = np.array([0], dtype=np.intp)
    return PairCounts(one, one + 1, np.array([wins]), np.array([losses]), np.array([ties]))


def test_expected_score() -> None:
    """Equal ratings share the point; 400 points ahead is 10 to 1."""
    assert expected_score(np.array([0.0, 400.0, -400.0])) == pytest.approx([0.5, 10 / 11, 1 / 11])


def test_elo_online_by_hand() -> None:
    """a beats b (+16 each way), then b beats a from 984 against 1016 and gains 32 (1 - 1 / (1 + 10^0.08))."""
    games = Games.of([Game("a", "b", 1.0), Game("b", "a", 1.0)])
    orders = np.array([[0, 1], [1, 0], [0, 0]], dtype=np.int32)
    gained = 32 * (1 - 1 / (1 + 10**0.08))
    again = 32 * (1 - 1 / (1 + 10**-0.08))
    assert gained == pytest.approx(17.4695, abs=1e-4)
    ratings = elo_online(games, orders, k=32, start=1000)
    assert ratings[0] == pytest.approx([1016 - gained, 984 + gained])
    assert ratings[1] == pytest.approx([984 + gained, 1016 - gained])
    assert ratings[2] == pytest.approx([1016 + again, 984 - again])


def test_a_tie_moves_the_better_down() -> None:
    """At equal ratings a tie moves nothing; from 1016 against 984 it costs 32 (0.5 - 0.54592) points."""
    games = Games.of([Game("a", "b", 1.0), Game("a", "b", 0.5)])
    ratings = elo_online(games, np.array([[1, 0], [0, 1]], dtype=np.int32), k=32, start=1000)
    assert ratings[0] == pytest.approx([1016.0, 984.0])
    assert ratings[1, 0] == pytest.approx(1016 + 32 * (0.5 - 0.54592), abs=1e-3)


def test_points_are_conserved_and_orders_averaged() -> None:
    """Elo only moves points; one win each way averages to about equal however the games are ordered."""
    games = Games.of([Game("a", "b", 1.0), Game("b", "a", 1.0)])
    rng = np.random.default_rng(0)
    averaged = elo_averaged(games, RatingMethod(permutations=2000), rng)
    assert averaged.sum() == pytest.approx(2000)
    assert averaged == pytest.approx([1000, 1000], abs=0.2)


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "lead", "nu"),
    [
        (3, 1, 0, math.log(3), 0.0),  # odds of 3 to 1
        (8, 2, 4, math.log(4), 1.0),  # ratio of wins; nu = ties / sqrt(wins * losses)
        (9, 1, 6, math.log(9), 2.0),
        (5, 5, 0, 0.0, 0.0),
        (0, 0, 7, 0.0, math.inf),  # nothing but ties
    ],
)
def test_davidson_for_two_subjects_by_hand(
    wins: float, losses: float, ties: float, lead: float, nu: float
) -> None:
    """Two subjects are a saturated model: the fit reproduces the observed shares exactly."""
    fit = fit_bradley_terry(pair(wins, losses, ties), 2)
    assert fit.strengths == pytest.approx([lead / 2, -lead / 2], abs=1e-7)
    assert fit.tie == pytest.approx(nu, abs=1e-7)


def test_bradley_terry_for_three_subjects_by_hand() -> None:
    """Shares that a Bradley-Terry model with odds 4 : 2 : 1 predicts exactly give back those odds."""
    games = [Game("a", "b", 1.0)] * 2 + [Game("b", "a", 1.0)]
    games += [Game("b", "c", 1.0)] * 2 + [Game("c", "b", 1.0)]
    games += [Game("a", "c", 1.0)] * 4 + [Game("c", "a", 1.0)]
    points = bradley_terry(Games.of(games), start=1000)
    step = 400 * math.log10(2)
    assert points == pytest.approx([1000 + step, 1000, 1000 - step], abs=1e-5)


def test_undefined_maximum_is_refused_and_a_prior_defines_it() -> None:
    """Who only wins has no finite maximum; with a normal prior of 1, x solves sigmoid(-2x) = x."""
    games = Games.of([Game("a", "b", 1.0)])
    with pytest.raises(InvalidInput, match="only win"):
        bradley_terry(games)
    fit = fit_bradley_terry(pair(1, 0, 0), 2, prior_deviation=1.0)
    strength = float(fit.strengths[0])
    assert 1 / (1 + math.exp(2 * strength)) == pytest.approx(strength, abs=1e-8)


def test_games_that_never_meet_are_refused() -> None:
    """Two islands have no common scale, so maximum likelihood without a prior is refused."""
    games = [Game(*sides, 0.5) for sides in (("a", "b"), ("c", "d"))]
    with pytest.raises(InvalidInput, match="never meet"):
        bradley_terry(Games.of(games))


def test_pairs_are_counted_whichever_way_round() -> None:
    """a-b and b-a are one pair, seen from the name that sorts first."""
    games = Games.of([Game("a", "b", 1.0), Game("b", "a", 1.0), Game("b", "a", 0.0), Game("b", "a", 0.5)])
    counts = count_pairs(games)
    assert [counts.first_wins[0], counts.second_wins[0], counts.ties[0]] == [2.0, 1.0, 1.0]


def simulated(truth: dict[str, float], nu: float, each: int, seed: int) -> list[Game]:
    """Games drawn from Davidson's model; `truth` in Elo points."""
    rng = np.random.default_rng(seed)
    games: list[Game] = []
    for one, other in itertools.combinations(truth, 2):
        odds = 10 ** ((truth[one] - truth[other]) / 400)
        shares = np.array([odds, 1.0, nu * math.sqrt(odds)])
        drawn = rng.choice([1.0, 0.0, 0.5], size=each, p=shares / shares.sum())
        games.extend(Game(one, other, float(score)) for score in drawn)
    return games


TRUTH = {"weak": 850.0, "plain": 950.0, "good": 1050.0, "best": 1150.0}


def test_bradley_terry_finds_a_simulated_truth() -> None:
    """From 6,000 games with ties the strengths come back within 12 Elo points and nu within 5 %."""
    games = Games.of(simulated(TRUTH, 0.6, 1000, seed=3))
    points = dict(zip(games.subjects, bradley_terry(games), strict=True))
    assert points == pytest.approx(TRUTH, abs=12)
    assert fit_bradley_terry(count_pairs(games), 4).tie == pytest.approx(0.6, rel=0.05)


def test_intervals_cover_the_simulated_truth() -> None:
    """Of 30 experiments' 95 % intervals (120 of them) between 90 and 99 % hold the true strength."""
    method = RatingMethod(kind="bradley-terry", samples=100, prior_deviation=math.inf)
    covered = [
        rating.low <= TRUTH[rating.subject] <= rating.high
        for seed in range(30)
        for rating in rate(simulated(TRUTH, 0.6, 60, seed), method)
    ]
    assert 0.90 <= float(np.mean(covered)) <= 0.99


def test_elo_orders_a_simulated_truth_and_repeats_itself() -> None:
    """Averaged Elo ranks as the truth does, its interval holds its rating, and it repeats itself."""
    games = simulated(TRUTH, 0.6, 100, seed=5)
    ratings = rate(games, RatingMethod(k=8))
    assert [rating.subject for rating in ratings] == ["best", "good", "plain", "weak"]
    assert all(rating.low <= rating.rating <= rating.high for rating in ratings)
    assert all(20 < rating.high - rating.low < 120 for rating in ratings)
    assert [rating.comparisons for rating in ratings] == [300] * 4
    assert sum(rating.rating for rating in ratings) == pytest.approx(4000)
    assert rate(games, RatingMethod(k=8)) == ratings


def test_nothing_to_rate() -> None:
    """No games, or only games of a subject against itself, give no ratings."""
    assert rate([]) == []
    assert rate([Game("policy@0", "policy@0", 1.0)]) == []


@pytest.mark.parametrize("kind", ["elo", "bradley-terry"])
def test_candidates_of_many_items_are_rated_in_seconds(kind: str) -> None:
    """3,000 candidates of 1,500 items, each compared once: the preferred one is always above."""
    games = [Game(f"{n}/a", f"{n}/b", (1.0, 0.0, 0.5)[n % 3]) for n in range(1500)]
    began = time.process_time()
    ratings = {r.subject: r for r in rate(games, RatingMethod(kind=kind, samples=50))}  # type: ignore[arg-type]
    assert time.process_time() - began < 10
    assert len(ratings) == 3000
    assert ratings["0/a"].rating > 1000 > ratings["0/b"].rating
    assert ratings["1/a"].rating < 1000 < ratings["1/b"].rating
    assert ratings["2/a"].rating == pytest.approx(1000, abs=1e-6)
    assert ratings["0/a"].comparisons == 1
