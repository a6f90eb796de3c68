"""Owns how certain strengths are: the Laplace approximation of their posterior, island by island. Pure.

The precision is the prior's plus, for each vote on i and j, w (e_i - e_j)(e_i - e_j)^T with w its Fisher information.
Subjects that no chain of comparisons connects are independent, so that thousands of candidates of different prompts,
each met by a few others, need many small matrices and no large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.preference.bradley_terry import Floats, Indices
from services.preference.crowd import CrowdFit, Votes, fit_crowd, vote_information

Edges = Indices  # [edges, 2]

_FIRST_PRIOR = 1.7  # log-odds: 300 Elo points
_PRIORS = (0.3, 4.6)  # 50 to 800 Elo points


@dataclass(frozen=True, slots=True)
class Island:
    """Connected subjects: `members` [n] ascending, `covariance` [n, n] of their strengths, squared log-odds."""

    members: Indices
    covariance: Floats

    def deviations(self) -> Floats:
        """[n] standard deviation of each strength less the island's mean: the mean itself is the prior's alone."""
        rows = self.covariance.mean(axis=1)
        variance = np.diag(self.covariance) - 2 * rows + rows.mean()
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))


def islands(
    votes: Votes, found: CrowdFit, prior_deviation: float, more: Edges | None = None
) -> tuple[list[Island], Indices]:
    """All islands, and [subjects] which one each is in. `more`: edges that connect without a vote."""
    subjects = len(found.fit.strengths)
    met = np.stack([votes.first, votes.second], axis=1)
    labels = _labels(met if more is None else np.concatenate([met, more]), subjects)
    _, island_of = np.unique(labels, return_inverse=True)
    known = vote_information(votes, found)
    place = np.zeros(subjects, dtype=np.intp)
    told = split(island_of[votes.first])
    made = []
    for number, members in split(island_of).items():
        place[members] = np.arange(len(members))
        precision = np.diag(np.full(len(members), prior_deviation**-2))
        rows = told.get(number, members[:0])
        _add_edges(precision, place[met[rows]], known[rows])
        made.append(Island(members, np.linalg.inv(precision)))
    return made, island_of


@dataclass(frozen=True, slots=True)
class Belief:
    """A fit, and the deviation (log-odds) of the normal prior on strengths that it was made with."""

    found: CrowdFit
    prior_deviation: float


def fit_belief(
    votes: Votes,
    subjects: int,
    annotators: int,
    *,
    guess: Belief | None = None,
    steps: int = 5,
    tolerance: float = 1e-3,
) -> Belief:
    """A fit whose prior is as wide as the strengths turn out to be (empirical Bayes, by expectation maximisation).

    Too wide a prior makes a first answer seem to tell far more than it does. At most `steps` of the prior; with
    `guess`, a belief from earlier votes on the same subjects and annotators, one is enough.
    """
    prior = guess.prior_deviation if guess else _FIRST_PRIOR
    found = guess.found if guess else None
    while True:
        steps -= 1
        found = fit_crowd(
            votes, subjects, annotators, prior_deviation=prior, guess=found, tolerance=tolerance
        )
        before, prior = prior, _spread(votes, found, prior)
        if steps <= 0 or abs(np.log(prior / before)) < 0.05:
            return Belief(found, prior)


def _spread(votes: Votes, found: CrowdFit, prior_deviation: float) -> float:
    """Root mean square of the strengths under their posterior, within bounds."""
    made, _ = islands(votes, found, prior_deviation)
    uncertain = sum(float(np.trace(island.covariance)) for island in made)
    known = float((found.fit.strengths**2).sum())
    count = max(1, len(found.fit.strengths))
    return float(np.clip(((uncertain + known) / count) ** 0.5, *_PRIORS))


def split(groups: Indices) -> dict[int, Indices]:
    """Positions by group, each ascending, in the order of the groups' numbers."""
    order = np.argsort(groups, kind="stable")
    names, begins = np.unique(groups[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, begins[1:]), strict=False))


def _labels(edges: Edges, subjects: int) -> Indices:
    """[subjects] the lowest subject that each is connected with."""
    labels = np.arange(subjects)
    one, other = edges.T
    while True:
        lowest = np.minimum(labels[one], labels[other])
        new = labels.copy()
        np.minimum.at(new, one, lowest)
        np.minimum.at(new, other, lowest)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def _add_edges(precision: Floats, ends: Edges, weights: Floats) -> None:
    """Adds weight (e_i - e_j)(e_i - e_j)^T for each edge, in place."""
    one, other = ends.T
    np.add.at(precision, (one, one), weights)
    np.add.at(precision, (other, other), weights)
    np.add.at(precision, (one, other), -weights)
    np.add.at(precision, (other, one), -weights)
