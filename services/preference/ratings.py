"""Owns how comparisons become ratings in Elo points. Pure: no I/O, no clock, no global seed.

Elo depends on the order of the games (Elo 1978; Boubdir et al. 2023, arXiv 2311.17295), so the rating is the
mean over seeded permutations of that order. Intervals are 95 % percentile bootstrap over the comparisons,
taken as independent. Bradley-Terry is the model that Elo approximates; it has no order at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from services.preference.bradley_terry import Fit, Floats, Indices, PairCounts, fit_bradley_terry

Orders = npt.NDArray[np.int32]

ELO_PER_LOG_ODDS = 400 / math.log(10)
_BOUNDS = (2.5, 97.5)
_CELLS = 8_000_000  # ratings (64 MB) or game numbers (32 MB) held at once


@dataclass(frozen=True, slots=True)
class Game:
    """One comparison of two subjects. `score` of the first: 1 won, 0.5 tie, 0 lost. `annotator`: who said so."""

    first: str
    second: str
    score: float
    annotator: str = ""


@dataclass(frozen=True, slots=True)
class Rating:
    """Elo points with a 95 % interval, and how many comparisons it rests on."""

    subject: str
    rating: float
    low: float
    high: float
    comparisons: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingMethod:
    """How ratings are made.

    `k`: Elo points at stake per comparison. `start`: points of a subject before its first comparison.
    `permutations`: orders that Elo is averaged over. `samples`: bootstrap resamples.
    `prior_deviation`: of the normal prior on Bradley-Terry strengths, Elo points; infinite is none.
    """

    kind: Literal["elo", "bradley-terry"] = "elo"
    k: float = 32.0
    start: float = 1000.0
    permutations: int = 16
    samples: int = 200
    prior_deviation: float = 800.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Games:
    """Games as arrays: `first`, `second` [games] index `subjects`; `score` [games] float64."""

    subjects: tuple[str, ...]
    first: Indices
    second: Indices
    score: Floats

    @classmethod
    def of(cls, games: Sequence[Game]) -> Games:
        """Subjects are sorted by name. Games of a subject against itself say nothing and are left out."""
        told = [game for game in games if game.first != game.second]
        subjects = tuple(sorted({name for game in told for name in (game.first, game.second)}))
        index = {name: number for number, name in enumerate(subjects)}
        first = np.array([index[game.first] for game in told], dtype=np.intp)
        second = np.array([index[game.second] for game in told], dtype=np.intp)
        return cls(subjects, first, second, np.array([game.score for game in told], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.score)


def expected_score(lead: Floats) -> Floats:
    """What a subject that is `lead` Elo points ahead should score on average, 0 to 1. Elo 1978."""
    return np.asarray(1 / (1 + 10 ** (-lead / 400)), dtype=np.float64)


def elo_online(games: Games, orders: Orders, *, k: float = 32.0, start: float = 1000.0) -> Floats:
    """Elo after each of several orders of the games, all at once.

    orders: [orders, games] indices into `games` (a resample may repeat some).
    Returns [orders, subjects] Elo points.
    """
    ratings = np.full((len(orders), len(games.subjects)), start, dtype=np.float64)
    rows = np.arange(len(orders))
    for played in orders.T:
        first, second = games.first[played], games.second[played]
        lead = ratings[rows, first] - ratings[rows, second]
        gain = k * (games.score[played] - expected_score(lead))
        ratings[rows, first] += gain
        ratings[rows, second] -= gain
    return ratings


def elo_averaged(games: Games, method: RatingMethod, rng: np.random.Generator) -> Floats:
    """[subjects] Elo points, the mean over `method.permutations` random orders."""
    drawn = np.arange(len(games), dtype=np.int32)[None]
    mean: Floats = _mean_elo(games, drawn, method.permutations, method, rng)[0]
    return mean


def _mean_elo(
    games: Games, drawn: Orders, permutations: int, method: RatingMethod, rng: np.random.Generator
) -> Floats:
    """drawn: [samples, games]. Returns [samples, subjects], the mean over permutations of each sample."""
    orders = rng.permuted(np.repeat(drawn, permutations, axis=0), axis=1)
    ratings = elo_online(games, orders, k=method.k, start=method.start)
    return np.asarray(ratings.reshape(len(drawn), permutations, -1).mean(axis=1), dtype=np.float64)


def _elo_bootstrap(games: Games, method: RatingMethod, rng: np.random.Generator) -> Floats:
    """[samples, subjects]. A resample is averaged over fewer orders than the rating if there are many games.

    (Then the interval holds some of the order's noise too, so it errs on the wide side.)
    """
    permutations = max(1, min(method.permutations, _CELLS // (method.samples * len(games))))
    at_once = max(1, _CELLS // (permutations * max(len(games.subjects), len(games))))
    parts = []
    for begin in range(0, method.samples, at_once):
        shape = (min(at_once, method.samples - begin), len(games))
        drawn = rng.integers(0, len(games), size=shape, dtype=np.int32)
        parts.append(_mean_elo(games, drawn, permutations, method, rng))
    return np.concatenate(parts)


def count_pairs(games: Games) -> PairCounts:
    """Outcomes per unordered pair of subjects."""
    low, high = np.minimum(games.first, games.second), np.maximum(games.first, games.second)
    codes, where = np.unique(low * len(games.subjects) + high, return_inverse=True)
    score = np.where(games.first == low, games.score, 1 - games.score)

    def total(value: float) -> Floats:
        return np.bincount(where[score == value], minlength=len(codes)).astype(np.float64)

    first, second = np.divmod(codes, max(1, len(games.subjects)))
    return PairCounts(first, second, total(1.0), total(0.0), total(0.5))


def _points(fit: Fit, start: float) -> Floats:
    return start + fit.strengths * ELO_PER_LOG_ODDS


def bradley_terry(games: Games, *, start: float = 1000.0, prior_deviation: float = math.inf) -> Floats:
    """[subjects] Elo points with mean `start`. InvalidInput where there is no maximum (and no prior)."""
    prior = prior_deviation / ELO_PER_LOG_ODDS
    return _points(fit_bradley_terry(count_pairs(games), len(games.subjects), prior_deviation=prior), start)


def _bradley_terry_bootstrap(games: Games, method: RatingMethod, rng: np.random.Generator) -> Floats:
    """[samples, subjects]. A resample may leave the maximum undefined, so it always has a (wide) prior."""
    prior = min(method.prior_deviation, 4000.0) / ELO_PER_LOG_ODDS
    counts = count_pairs(games)
    cells = np.concatenate([counts.first_wins, counts.second_wins, counts.ties])
    guess = fit_bradley_terry(counts, len(games.subjects), prior_deviation=prior)
    samples = []
    # Drawing games with replacement is drawing how often each outcome of each pair comes.
    for drawn in rng.multinomial(len(games), cells / cells.sum(), size=method.samples):
        won, lost, tied = np.split(drawn.astype(np.float64), 3)
        sample = PairCounts(counts.first, counts.second, won, lost, tied)
        fit = fit_bradley_terry(
            sample, len(games.subjects), prior_deviation=prior, guess=guess, tolerance=1e-6
        )
        samples.append(_points(fit, method.start))
    return np.stack(samples)


def rate(games: Sequence[Game], method: RatingMethod | None = None) -> list[Rating]:
    """Ratings of every subject that met another one, best first. The same input, the same output."""
    how = method or RatingMethod()
    table = Games.of(games)
    if len(table) == 0:
        return []
    rng = np.random.default_rng(how.seed)
    if how.kind == "elo":
        points, resampled = elo_averaged(table, how, rng), _elo_bootstrap(table, how, rng)
    else:
        points = bradley_terry(table, start=how.start, prior_deviation=how.prior_deviation)
        resampled = _bradley_terry_bootstrap(table, how, rng)
    low, high = np.percentile(resampled, _BOUNDS, axis=0)
    played = np.bincount(table.first, minlength=len(points)) + np.bincount(
        table.second, minlength=len(points)
    )
    ratings = [
        # A percentile interval may miss the estimate itself where there are only a few comparisons.
        Rating(
            name,
            float(points[n]),
            float(min(low[n], points[n])),
            float(max(high[n], points[n])),
            int(played[n]),
        )
        for n, name in enumerate(table.subjects)
    ]
    return sorted(ratings, key=lambda rating: (-rating.rating, rating.subject))
