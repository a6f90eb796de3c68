"""Annotators weighted by reliability: against values worked out by hand and against a simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from services.preference.bradley_terry import Floats
from services.preference.crowd import CrowdFit, Votes, fit_crowd, reliabilities
from services.preference.outcomes import shares
from services.preference.ratings import Game, RatingMethod, rate, reliability


def votes(strengths: Floats, eta: Floats, count: int, seed: int, tie: float = 0.0) -> Votes:
    """Drawn from the model: Davidson, then reported by an annotator drawn uniformly."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(strengths), count)
    second = (first + rng.integers(1, len(strengths), count)) % len(strengths)
    annotator = rng.integers(0, len(eta), count)
    cut = shares(strengths[first] - strengths[second], tie, eta[annotator])
    drawn = rng.random(count)
    score = np.where(drawn < cut[0], 1.0, np.where(drawn < cut[0] + cut[1], 0.0, 0.5))
    return Votes(first, second, score, annotator)


def log_posterior(said: Votes, at: CrowdFit, prior: float) -> float:
    """Written out from the definition, with the Beta(9, 3) whose mode the fit is."""
    eta = at.reliability[said.annotator]
    p = shares(at.fit.strengths[said.first] - at.fit.strengths[said.second], at.fit.tie, eta)
    chosen = np.where(said.score == 1, p[0], np.where(said.score == 0, p[1], p[2]))
    beta = 8 * np.log(at.reliability) + 2 * np.log(1 - at.reliability)
    return float(np.log(chosen).sum() - (at.fit.strengths**2).sum() / (2 * prior**2) + beta.sum())


STRENGTHS = np.linspace(-2, 2, 12)
ETA = np.array([0.95, 0.9, 0.8, 0.5, 0.1])


def test_reliabilities_and_strengths_of_a_simulated_truth_come_back() -> None:
    """Careful ones, one who guesses, and one who has the sides mixed up, whose answers then tell as much as any."""
    said = votes(STRENGTHS, ETA, 12_000, seed=1, tie=0.3)
    found = fit_crowd(said, 12, 5)
    assert found.reliability == pytest.approx(ETA, abs=0.04)
    # Strengths that are larger and annotators who are worse explain the same answers: the scale is the least certain.
    slope = float(found.fit.strengths @ STRENGTHS / (STRENGTHS @ STRENGTHS))
    assert slope == pytest.approx(1, abs=0.2)
    assert found.fit.strengths / slope == pytest.approx(STRENGTHS, abs=0.2)
    assert found.fit.tie == pytest.approx(0.3, rel=0.15)


def test_the_fit_is_a_maximum() -> None:
    """No step of any strength or reliability raises the posterior, written out anew here."""
    said = votes(STRENGTHS, ETA, 1500, seed=2)
    found = fit_crowd(said, 12, 5, prior_deviation=1.5, tolerance=1e-9, most_steps=2000)
    best = log_posterior(said, found, 1.5)
    for n in range(12):
        for step in (0.02, -0.02):
            strengths = found.fit.strengths + step * (np.arange(12) == n)
            moved = CrowdFit(type(found.fit)(strengths, found.fit.tie), found.reliability)
            assert log_posterior(said, moved, 1.5) < best
    for n in range(5):
        for step in (0.005, -0.005):
            moved = CrowdFit(found.fit, found.reliability + step * (np.arange(5) == n))
            assert log_posterior(said, moved, 1.5) < best


def test_intervals_hold_the_reliability_and_mark_who_guesses() -> None:
    """In 20 experiments 95 % intervals hold the truth in 85 to 100 % of cases; only the guesser is marked."""
    eta = np.array([0.9, 0.8, 0.8, 0.7, 0.5])
    held, marked = [], []
    for seed in range(20):
        said = votes(STRENGTHS, eta, 3000, seed)
        rows = reliabilities(said, fit_crowd(said, 12, 5), tuple("abcde"))
        marked += [row.annotator for row in rows if row.at_random]
        assert [row.reliability for row in rows] == sorted(row.reliability for row in rows)
        truth = dict(zip("abcde", eta, strict=True))
        held += [row.low <= truth[row.annotator] <= row.high for row in rows]
    assert 0.85 <= np.mean(held) <= 1.0
    assert set(marked) == {"e"}
    assert len(marked) >= 18


def test_intervals_are_as_wide_as_the_posterior_is_curved() -> None:
    """With a third of the answers tied, half an interval is 1.96 deviations of the posterior, written out anew,
    within a tenth."""
    said = votes(STRENGTHS, ETA, 20_000, seed=5, tie=1.5)
    assert 0.3 <= np.mean(said.score == 0.5) <= 0.4
    found = fit_crowd(said, 12, 5)
    rows = {row.annotator: row for row in reliabilities(said, found, tuple("abcde"))}
    for n, name in enumerate("abcde"):
        away = [
            log_posterior(said, CrowdFit(found.fit, found.reliability + step * (np.arange(5) == n)), 4.6)
            for step in (-0.005, 0.0, 0.005)
        ]
        deviation = (-(away[0] - 2 * away[1] + away[2]) / 0.005**2) ** -0.5
        assert (rows[name].high - rows[name].low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)


def test_a_few_answers_mark_nobody() -> None:
    """Four answers, all against the others: low, but far from certain."""
    games = [Game(f"{n}/a", f"{n}/b", 1.0, who) for n in range(30) for who in ("ann", "bob", "cat")]
    games += [Game(f"{n}/a", f"{n}/b", 0.0, "dan") for n in range(4)]
    rows = reliability(games)
    assert rows[0].annotator == "dan"
    assert rows[0].comparisons == 4
    assert rows[0].low < rows[0].reliability < rows[1].reliability
    assert not any(row.at_random for row in rows)
    assert reliability([]) == []


def test_a_later_fit_may_begin_at_an_earlier_one() -> None:
    """With more subjects and annotators than before, the result is the same as from the beginning."""
    said = votes(STRENGTHS, ETA, 4000, seed=3)
    early = np.flatnonzero((said.first < 10) & (said.second < 10) & (said.annotator < 4))[:1000]
    part = Votes(said.first[early], said.second[early], said.score[early], said.annotator[early])
    guess = fit_crowd(part, 10, 4)
    warm = fit_crowd(said, 12, 5, guess=guess, tolerance=1e-7, most_steps=2000)
    cold = fit_crowd(said, 12, 5, tolerance=1e-7, most_steps=2000)
    assert warm.fit.strengths == pytest.approx(cold.fit.strengths, abs=1e-3)
    assert warm.reliability == pytest.approx(cold.reliability, abs=1e-4)


def test_crowd_ratings_survive_guessing_annotators() -> None:
    """Half of the answers are guesses: weighted ratings are nearer to the truth, and most intervals hold it."""
    eta = np.array([0.98, 0.98, 0.5, 0.5])
    truth = {f"s{n:02}": 1000 + 400 * value / np.log(10) for n, value in enumerate(STRENGTHS)}
    names = list(truth)
    drawn = votes(STRENGTHS, eta, 4000, seed=4)
    games = [
        Game(names[first], names[second], score, f"annotator {who}")
        for first, second, score, who in zip(
            *map(np.ndarray.tolist, (drawn.first, drawn.second, drawn.score, drawn.annotator)), strict=True
        )
    ]
    off, width = {}, {}
    for kind in ("bradley-terry", "crowd"):
        ratings = rate(games, RatingMethod(kind=kind, samples=100))  # type: ignore[arg-type]
        off[kind] = np.mean([abs(rating.rating - truth[rating.subject]) for rating in ratings])
        width[kind] = np.mean([rating.low <= truth[rating.subject] <= rating.high for rating in ratings])
    assert off["crowd"] < 0.5 * off["bradley-terry"]
    assert width["crowd"] >= 9 / 12
    assert width["bradley-terry"] <= 4 / 12


def test_ties_alone_leave_everything_as_it_was_presumed() -> None:
    """All at the start, as uncertain as the prior around its mean: 800 / sqrt 2 points for two; annotators at 0.8."""
    games = [Game("a", "b", 0.5, "ann"), Game("b", "a", 0.5, "bob")]
    for row in rate(games, RatingMethod(kind="crowd", samples=4000)):
        assert (row.rating, row.comparisons) == (1000.0, 2)
        assert row.high - 1000 == pytest.approx(1.96 * 800 / 2**0.5, rel=0.1)
        assert 1000 - row.low == pytest.approx(1.96 * 800 / 2**0.5, rel=0.1)
    assert [(one.reliability, one.at_random) for one in reliability(games)] == [(0.8, False)] * 2


def test_a_fit_of_ties_alone_misleads_no_later_one() -> None:
    """Beginning with it, wins count as meant: the same fit comes out as without it."""
    index = np.zeros(20, dtype=np.intp)
    ties = Votes(index[:3], index[:3] + 1, np.full(3, 0.5), index[:3])
    wins = Votes(index, index + 1, np.where(np.arange(20) < 3, 0.5, 1.0), index)
    before = fit_crowd(ties, 2, 1)
    found, fresh = fit_crowd(wins, 2, 1, guess=before, tolerance=1e-9), fit_crowd(wins, 2, 1, tolerance=1e-9)
    assert found.reliability == pytest.approx(fresh.reliability, abs=1e-4)
    assert found.fit.strengths == pytest.approx(fresh.fit.strengths, abs=1e-3)
