"""Owns ratings that weigh annotators by how reliable they turn out to be. Pure: no clock, no randomness.

Crowd-BT (Chen et al. 2013, WSDM): whether an annotator reported a comparison as meant or the other way round is
hidden, so strengths and reliabilities are found together by expectation maximisation. Each comparison is split into a
part "as meant" and a part "the other way round", which makes fractional counts for bradley_terry.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from services.preference.bradley_terry import Fit, Floats, Indices, PairCounts, fit_bradley_terry
from services.preference.outcomes import information, shares

# Beta prior on reliability, as comparisons seen before the first: 8 as meant, 2 not. Its mean breaks the tie between
# "all are right" and "all have the sides mixed up", which fit equally well.
AS_MEANT, OTHERWISE = 8.0, 2.0
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Votes:
    """Comparisons as arrays [votes]: indices of subjects and annotators; `score` of the first: 1, 0.5 or 0."""

    first: Indices
    second: Indices
    score: Floats
    annotator: Indices


@dataclass(frozen=True, slots=True)
class CrowdFit:
    """`fit`: strengths and tie parameter; `reliability`: [annotators] eta in [0, 1]."""

    fit: Fit
    reliability: Floats


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often an annotator reports what was meant: eta with a 95 % interval; 1/2 is chance.

    `at_random`: the interval lies wholly below half-way from chance to the median annotator.
    """

    annotator: str
    reliability: float
    low: float
    high: float
    comparisons: int
    at_random: bool


def fit_crowd(
    votes: Votes,
    subjects: int,
    annotators: int,
    *,
    prior_deviation: float = 4.6,
    guess: CrowdFit | None = None,
    tolerance: float = 1e-4,
    most_steps: int = 300,
) -> CrowdFit:
    """The mode of strengths and reliabilities. `prior_deviation`: of the normal prior on strengths, log-odds, finite.

    Stops when no reliability moves by more than `tolerance` in a step. `guess`: a fit of earlier votes, of which
    subjects and annotators are the first ones of these.
    """
    counter = _Counter(votes, subjects)
    reliability = np.full(annotators, AS_MEANT / (AS_MEANT + OTHERWISE))
    fit = None
    if guess is not None:
        reliability[: len(guess.reliability)] = guess.reliability
        more = subjects - len(guess.fit.strengths)
        fit = replace(guess.fit, strengths=np.concatenate([guess.fit.strengths, np.zeros(more)]))
    as_meant = reliability[votes.annotator] if fit is None else _as_meant(votes, CrowdFit(fit, reliability))
    for _ in range(most_steps):
        before = reliability
        fit = fit_bradley_terry(
            counter.counts(as_meant), subjects, prior_deviation=prior_deviation, guess=fit, tolerance=1e-7
        )
        as_meant = _as_meant(votes, CrowdFit(fit, reliability))
        reliability = _reliability(votes, as_meant, annotators)
        if np.abs(reliability - before).max(initial=0.0) <= tolerance:
            break
    if fit is None:
        raise ValueError("most_steps must be at least 1")
    return CrowdFit(fit, reliability)


def reliabilities(votes: Votes, found: CrowdFit, names: tuple[str, ...]) -> list[Reliability]:
    """One per annotator, the least reliable first. Intervals are of the Laplace approximation, strengths held fixed."""
    decided = votes.score != 0.5
    who = votes.annotator[decided]
    lead = _lead(votes, found.fit)[decided]
    clear = 2 * shares(lead, found.fit.tie)[0] - (1 - shares(lead, found.fit.tie)[2])  # p1 - p2
    seen = shares(lead, found.fit.tie, found.reliability[who])
    # Of a comparison that somebody won: a tie says nothing of who reports it.
    known = np.bincount(who, clear**2 * (1 / seen[0] + 1 / seen[1]) / (seen[0] + seen[1]), len(names))
    prior = (AS_MEANT + OTHERWISE) / np.maximum(found.reliability * (1 - found.reliability), 1e-3)
    deviation = (known + prior) ** -0.5
    bar = (0.5 + max(0.5, float(np.median(found.reliability)))) / 2
    counted = np.bincount(votes.annotator, minlength=len(names))
    rows = [
        Reliability(
            annotator=name,
            reliability=(eta := float(found.reliability[n])),
            low=max(0.0, eta - _NORMAL_95 * float(deviation[n])),
            high=(high := min(1.0, eta + _NORMAL_95 * float(deviation[n]))),
            comparisons=int(counted[n]),
            at_random=high < bar,
        )
        for n, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (row.reliability, row.annotator))


def vote_information(votes: Votes, found: CrowdFit) -> Floats:
    """[votes] what each says about the lead of its first subject, per squared log-odds."""
    return information(_lead(votes, found.fit), found.fit.tie, found.reliability[votes.annotator])


def _lead(votes: Votes, fit: Fit) -> Floats:
    return fit.strengths[votes.first] - fit.strengths[votes.second]


def _as_meant(votes: Votes, found: CrowdFit) -> Floats:
    """[votes] probability that each was reported as meant, given strengths and reliabilities.

    The reliability itself where the fit says nothing about who wins: all were ties until then.
    """
    said = shares(_lead(votes, found.fit), found.fit.tie)
    won = np.where(votes.score > 0.5, said[0], said[1])
    lost = np.where(votes.score > 0.5, said[1], said[0])
    eta = found.reliability[votes.annotator]
    either = eta * won + (1 - eta) * lost
    return np.asarray(np.where(either > 0, eta * won / np.maximum(either, 1e-300), eta))


def _reliability(votes: Votes, as_meant: Floats, annotators: int) -> Floats:
    """[annotators] mean of the Beta posterior; ties say nothing about it."""
    decided = votes.score != 0.5
    right = np.bincount(votes.annotator[decided], as_meant[decided], annotators)
    count = np.bincount(votes.annotator[decided], minlength=annotators)
    return np.asarray((right + AS_MEANT) / (count + AS_MEANT + OTHERWISE))


class _Counter:
    """Sums votes of the same pair; who met whom stays, only the weights change from step to step."""

    def __init__(self, votes: Votes, subjects: int) -> None:
        low = np.minimum(votes.first, votes.second)
        high = np.maximum(votes.first, votes.second)
        codes, self._where = np.unique(low * subjects + high, return_inverse=True)
        self._first, self._second = np.divmod(codes, max(1, subjects))
        self._score = np.where(votes.first == low, votes.score, 1 - votes.score)
        self._annotator = votes.annotator

    def counts(self, as_meant: Floats) -> PairCounts:
        won, lost, tied = self._score == 1.0, self._score == 0.0, self._score == 0.5
        return PairCounts(
            self._first,
            self._second,
            self._total(np.where(won, as_meant, np.where(lost, 1 - as_meant, 0.0))),
            self._total(np.where(lost, as_meant, np.where(won, 1 - as_meant, 0.0))),
            self._total(tied.astype(np.float64)),
        )

    def _total(self, weights: Floats) -> Floats:
        return np.bincount(self._where, weights, len(self._first)).astype(np.float64)
