"""Owns which pairs to ask about next: those whose answers would tell most. Pure: no I/O, no clock, no randomness.

Under the Laplace approximation of the Bradley-Terry posterior, the lead of one subject over another is normal. What an
answer tells is its mutual information with that lead (Houlsby et al. 2011, arXiv 1112.5745, "BALD"), in nats:

    gain = H(E[p]) - E[H(p)],   p the shares of first, second and tie at a lead, seen through a typical annotator

It is large where the lead is uncertain and the answer open, and small where more answers would only repeat the noise. A
batch is chosen greedily: each pair is taken as answered, and the posterior narrowed by its expected information, before
the next is chosen; so a batch spreads over subjects instead of asking one question 50 times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.preference.bradley_terry import Floats, Indices
from services.preference.crowd import CrowdFit, Votes, fit_crowd, vote_information
from services.preference.outcomes import entropy, information, shares
from services.preference.ratings import ELO_PER_LOG_ODDS, Game

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_AT_ONCE = 64
_UNKNOWN = 0.8  # reliability of annotators who have not said anything: the prior's mean

Edges = Indices  # [edges, 2]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pair to ask about: its index in what was offered, and what its answer is expected to tell, nats."""

    index: int
    gain: float


def choose_pairs(
    games: Sequence[Game],
    pairs: Sequence[tuple[str, str]],
    limit: int,
    *,
    pending: Sequence[tuple[str, str]] = (),
    prior_deviation: float = 800.0,
) -> list[Proposal]:
    """At most `limit` of the offered pairs, the most informative first; each index comes once.

    games: what was said so far, with or without annotators. pairs: names of subjects as in `games`; subjects without a
    game yet are as uncertain as the prior; the same pair may be offered several times. pending: pairs that somebody is
    being asked about right now; they count as answered. `prior_deviation`: of the normal prior on strengths, Elo
    points, finite. A pair of a subject with itself is never chosen. The same input, the same output.
    """
    told = [game for game in games if game.first != game.second]
    asked = [pair for pair in pending if pair[0] != pair[1]]
    names = _numbered([game.first for game in told], [game.second for game in told], *pairs, *asked)
    people = _numbered([game.annotator for game in told])
    votes = Votes(
        _indices([names[game.first] for game in told]),
        _indices([names[game.second] for game in told]),
        np.array([game.score for game in told], dtype=np.float64),
        _indices([people[game.annotator] for game in told]),
    )
    deviation = prior_deviation / ELO_PER_LOG_ODDS
    found = fit_crowd(votes, len(names), len(people), prior_deviation=deviation)
    return choose(
        votes,
        found,
        _edges(names, pairs),
        limit,
        pending=_edges(names, asked),
        prior_deviation=deviation,
    )


def choose(
    votes: Votes,
    found: CrowdFit,
    offered: Edges,
    limit: int,
    *,
    pending: Edges | None = None,
    prior_deviation: float,
) -> list[Proposal]:
    """The same for arrays and a fit at hand. offered, pending: [pairs, 2] indices of subjects; log-odds."""
    waiting = np.zeros((0, 2), dtype=np.intp) if pending is None else pending
    beliefs = _beliefs(votes, found, offered, waiting, prior_deviation)
    heads = [belief.best() for belief in beliefs]
    chosen: list[Proposal] = []
    while heads and len(chosen) < limit:
        at = max(range(len(heads)), key=lambda n: (heads[n].gain, -heads[n].index))
        if heads[at].gain <= 0:
            break
        chosen.append(heads[at])
        beliefs[at].take(heads[at].index)
        heads[at] = beliefs[at].best()
    return chosen


class _Belief:
    """The posterior of subjects that are connected with each other, and the pairs of them that are offered."""

    def __init__(
        self, covariance: Floats, leads: Floats, ends: Edges, index: Indices, tie: float, reliability: float
    ) -> None:
        """covariance: [subjects, subjects]; leads: [pairs]; ends: [pairs, 2]; index: the pairs' names."""
        self._covariance = covariance
        self._leads = leads
        self._ends = ends
        self._index = index
        self._channel = (tie, reliability)
        self._gains = np.full(len(index), np.inf)  # never below the truth: narrowing only takes away
        self._gains[ends[:, 0] == ends[:, 1]] = -np.inf

    def best(self) -> Proposal:
        """The pair of the largest gain; gains are worked out anew only as far down the list as that needs."""
        known = np.zeros(len(self._gains), dtype=bool)
        while True:
            most = min(
                len(self._gains), _AT_ONCE if known.any() or np.isfinite(self._gains).any() else 1 << 30
            )
            block = np.argpartition(-self._gains, most - 1)[:most]
            top = int(block[np.lexsort((self._index[block], -self._gains[block]))[0]])
            if known[top] or self._gains[top] == -np.inf:
                return Proposal(int(self._index[top]), float(self._gains[top]))
            stale = block[~known[block] & (self._gains[block] > -np.inf)]
            self._gains[stale] = self._gain(stale)
            known[stale] = True

    def take(self, index: int) -> None:
        """The pair is asked about: never again, and what its answer tells is taken as known."""
        at = int(np.searchsorted(self._index, index))
        self._gains[at] = -np.inf
        self.narrow(int(self._ends[at, 0]), int(self._ends[at, 1]), float(self._leads[at]))

    def narrow(self, one: int, other: int, lead: float) -> None:
        """The posterior after an answer on average: a rank-one update (Sherman and Morrison)."""
        if one == other:
            return
        along = self._covariance[:, one] - self._covariance[:, other]
        told = float(information(np.array(lead), *self._channel))
        self._covariance -= np.outer(along, along) * (told / (1 + told * (along[one] - along[other])))

    def _gain(self, at: Indices) -> Floats:
        one, other = self._ends[at].T
        variance = np.diag(self._covariance)
        spread = np.sqrt(np.maximum(variance[one] + variance[other] - 2 * self._covariance[one, other], 0))
        probable = shares(self._leads[at, None] + spread[:, None] * _NODES, *self._channel)
        return np.maximum(entropy(probable @ _WEIGHTS) - entropy(probable) @ _WEIGHTS, 0.0)


def _beliefs(
    votes: Votes, found: CrowdFit, offered: Edges, waiting: Edges, prior_deviation: float
) -> list[_Belief]:
    """One for each island with offered pairs: what never met is independent, and small matrices are cheap."""
    strengths = found.fit.strengths
    met = np.stack([votes.first, votes.second], axis=1)
    islands = _islands(np.concatenate([met, offered, waiting]), len(strengths))
    known = vote_information(votes, found)
    reliability = float(found.reliability[votes.annotator].mean()) if len(votes.score) else _UNKNOWN
    place = np.zeros(len(strengths), dtype=np.intp)
    beliefs = []
    of_pairs, of_votes, of_waiting = (islands[edges[:, 0]] for edges in (offered, met, waiting))
    members, pairs, told, asked = (_by_island(of) for of in (islands, of_pairs, of_votes, of_waiting))
    for island, index in pairs.items():
        who = members[island]
        place[who] = np.arange(len(who))
        precision = np.diag(np.full(len(who), prior_deviation**-2))
        rows = told.get(island, index[:0])
        _add_edges(precision, place[met[rows]], known[rows])
        ends = place[offered[index]]
        leads = strengths[offered[index, 0]] - strengths[offered[index, 1]]
        belief = _Belief(np.linalg.inv(precision), leads, ends, index, found.fit.tie, reliability)
        for one, other in waiting[asked.get(island, index[:0])].tolist():
            belief.narrow(int(place[one]), int(place[other]), float(strengths[one] - strengths[other]))
        beliefs.append(belief)
    return beliefs


def _add_edges(precision: Floats, ends: Edges, weights: Floats) -> None:
    """Adds weight (e_i - e_j)(e_i - e_j)^T for each edge, in place."""
    one, other = ends.T
    np.add.at(precision, (one, one), weights)
    np.add.at(precision, (other, other), weights)
    np.add.at(precision, (one, other), -weights)
    np.add.at(precision, (other, one), -weights)


def _islands(edges: Edges, subjects: int) -> Indices:
    """[subjects] the lowest subject that each is connected with."""
    labels = np.arange(subjects)
    one, other = np.unique(np.sort(edges, axis=1), axis=0).T if len(edges) else (labels[:0], labels[:0])
    while True:
        lowest = np.minimum(labels[one], labels[other])
        new = labels.copy()
        np.minimum.at(new, one, lowest)
        np.minimum.at(new, other, lowest)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def _by_island(island: Indices) -> dict[int, Indices]:
    """Positions by island, each ascending."""
    order = np.argsort(island, kind="stable")
    names, begins = np.unique(island[order], return_index=True)
    parts = np.split(order, begins[1:])
    return dict(zip(names.tolist(), parts, strict=False))


def _numbered(*groups: Iterable[str]) -> dict[str, int]:
    return {name: n for n, name in enumerate(sorted({name for group in groups for name in group}))}


def _edges(names: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> Edges:
    return _indices([names[name] for pair in pairs for name in pair]).reshape(-1, 2)


def _indices(numbers: Sequence[int]) -> Indices:
    return np.array(numbers, dtype=np.intp)
