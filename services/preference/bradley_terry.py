"""Owns the Bradley-Terry fit with ties after Davidson. Pure: no clock, no randomness.

Model, with strengths theta (natural log-odds) and tie parameter nu (Davidson 1970, JASA 65):

    P(i beats j) = e^theta_i / D,   P(tie) = nu e^((theta_i + theta_j) / 2) / D,
    D = e^theta_i + e^theta_j + nu e^((theta_i + theta_j) / 2)

It is a log-linear model in theta and log nu, so its log-likelihood is concave: Newton's method with a line
search finds the maximum, and conjugate gradients solve each step without an n by n matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_NEWTON_STEPS = 100
_TOLERANCE = 1e-9  # of the gradient, in games, relative to the games played


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Outcomes per pair of subjects. All arrays [pairs]; first != second; counts may be fractional."""

    first: Indices
    second: Indices
    first_wins: Floats
    second_wins: Floats
    ties: Floats


@dataclass(frozen=True, slots=True)
class Fit:
    """`strengths`: [subjects] float64, natural log-odds, mean 0. `tie`: nu, inf if all were ties."""

    strengths: Floats
    tie: float


def fit_bradley_terry(
    counts: PairCounts,
    subjects: int,
    *,
    prior_deviation: float = math.inf,
    guess: Fit | None = None,
    tolerance: float = _TOLERANCE,
) -> Fit:
    """Maximum likelihood, or with a finite `prior_deviation` (log-odds) the mode under a normal prior.

    `guess` is where to begin; `tolerance` bounds the gradient, relative to the number of games.
    Without a prior the maximum exists only if every subject is connected with every other by chains of "not
    lost" in both directions (Ford 1957, for wins); InvalidInput otherwise.
    """
    if math.isinf(prior_deviation) and not _strongly_connected(counts, subjects):
        raise InvalidInput(
            "the comparisons do not fix all ratings: some subjects only win, only lose, or never meet; "
            "expected more comparisons or a finite prior_deviation"
        )
    decisive = counts.first_wins.sum() + counts.second_wins.sum()
    if decisive == 0:
        return Fit(np.zeros(subjects), math.inf if counts.ties.sum() > 0 else 0.0)
    likelihood = _Likelihood(counts, subjects, prior_deviation)
    point = likelihood.maximise(guess, tolerance)
    strengths = point[:-1] - point[:-1].mean() if subjects else point[:-1]
    return Fit(strengths, math.exp(point[-1]) if likelihood.has_ties else 0.0)


class _Likelihood:
    """Log-likelihood, gradient and curvature at x = [theta_0, …, theta_(n-1), log nu]."""

    def __init__(self, counts: PairCounts, subjects: int, prior_deviation: float) -> None:
        self._counts = counts
        self._subjects = subjects
        self._played = counts.first_wins + counts.second_wins + counts.ties
        self._precision = 0.0 if math.isinf(prior_deviation) else prior_deviation**-2
        self.has_ties = bool(counts.ties.sum() > 0)

    def maximise(self, guess: Fit | None, tolerance: float) -> Floats:
        """The point of the maximum, by damped Newton steps from a guess, or all strengths equal and nu = 1."""
        point = np.zeros(self._subjects + 1)
        if guess is not None:
            point[:-1] = guess.strengths
            point[-1] = math.log(guess.tie) if self.has_ties and 0 < guess.tie < math.inf else 0.0
        value = self._value(point)
        scale = max(1.0, float(self._played.sum()))
        for _ in range(_NEWTON_STEPS):
            gradient = self._gradient(point)
            if np.abs(gradient).max() <= tolerance * scale:
                break
            step = self._newton_step(point, gradient)
            size, slope = 1.0, _dot(gradient, step)
            while (ahead := self._value(point + size * step)) < value + 1e-4 * size * slope and size > 1e-10:
                size /= 2
            point, value = point + size * step, ahead
        return point

    def _shares(self, point: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Half the difference of the strengths, and P(first), P(second), P(tie); each [pairs]."""
        half = (point[self._counts.first] - point[self._counts.second]) / 2
        tie = np.full_like(half, point[-1] if self.has_ties else -np.inf)
        logits = np.stack([half, -half, tie])
        logits -= logits.max(axis=0)
        shares = np.exp(logits)
        shares /= shares.sum(axis=0)
        return half, shares[0], shares[1], shares[2]

    def _value(self, point: Floats) -> float:
        half = (point[self._counts.first] - point[self._counts.second]) / 2
        log_nu = point[-1] if self.has_ties else -np.inf
        normaliser = np.logaddexp(np.abs(half) + np.log1p(np.exp(-2 * np.abs(half))), log_nu)
        value = _dot(self._counts.first_wins - self._counts.second_wins, half) - _dot(
            self._played, normaliser
        )
        if self.has_ties:
            value += self._counts.ties.sum() * log_nu
        return float(value - self._precision / 2 * _dot(point[:-1], point[:-1]))

    def _spread(self, along: Floats, tie: float) -> Floats:
        """From pairs to subjects: +along/2 to the first, -along/2 to the second; the tie's part last."""
        out = np.zeros(self._subjects + 1)
        out[:-1] = np.bincount(self._counts.first, along / 2, self._subjects)
        out[:-1] -= np.bincount(self._counts.second, along / 2, self._subjects)
        out[-1] = tie
        return out

    def _gradient(self, point: Floats) -> Floats:
        _, first, second, tie = self._shares(point)
        along = self._counts.first_wins - self._counts.second_wins - self._played * (first - second)
        ties = float((self._counts.ties - self._played * tie).sum()) if self.has_ties else 0.0
        gradient = self._spread(along, ties)
        gradient[:-1] -= self._precision * point[:-1]
        return gradient

    def _newton_step(self, point: Floats, gradient: Floats) -> Floats:
        """Solves (minus Hessian) step = gradient by conjugate gradients."""
        _, first, second, tie = self._shares(point)
        lead = first - second
        own = self._played * (first + second - lead**2)
        cross = -self._played * lead * tie
        last = float((self._played * tie * (1 - tie)).sum())

        def curve(direction: Floats) -> Floats:
            half = (direction[self._counts.first] - direction[self._counts.second]) / 2
            out = self._spread(own * half + cross * direction[-1], _dot(cross, half) + last * direction[-1])
            out[:-1] += self._precision * direction[:-1]
            return out

        step = np.zeros_like(gradient)
        residual = gradient.copy()
        direction = residual.copy()
        size = _dot(residual, residual)
        # Far from the maximum a rough step is as good; near it the precision rises with convergence.
        enough = size * min(0.01, float(np.abs(gradient).max()) / max(1.0, float(self._played.max())))
        for _ in range(2 * len(gradient) + 10):
            curved = curve(direction)
            along = _dot(direction, curved)
            if size <= enough or along <= 0:
                break
            step += size / along * direction
            residual -= size / along * curved
            size, before = _dot(residual, residual), size
            direction = residual + size / before * direction
        return step if step.any() else gradient


def _dot(one: Floats, other: Floats) -> float:
    """Without BLAS: its threads wait for each other for far longer than these short sums take."""
    return float((one * other).sum())


def _strongly_connected(counts: PairCounts, subjects: int) -> bool:
    """Whether "did not always lose against" leads from every subject to every other; a tie goes both ways."""
    if subjects <= 1:
        return True
    down = [
        (counts.first, counts.second, counts.first_wins),
        (counts.second, counts.first, counts.second_wins),
    ]
    winners = np.concatenate([winner[(wins > 0) | (counts.ties > 0)] for winner, _, wins in down])
    losers = np.concatenate([loser[(wins > 0) | (counts.ties > 0)] for _, loser, wins in down])
    return _reaches_all(winners, losers, subjects) and _reaches_all(losers, winners, subjects)


def _reaches_all(start: Indices, end: Indices, subjects: int) -> bool:
    reached = np.zeros(subjects, dtype=bool)
    reached[0] = True
    for _ in range(subjects):
        before = int(reached.sum())
        reached[end[reached[start]]] = True
        if int(reached.sum()) == before:
            break
    return bool(reached.all())
