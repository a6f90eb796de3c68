"""Owns the simulated campaign that ratings are measured on: items of known strength, annotators of whom some guess.

A comparison of two items by an annotator drawn uniformly:
    1. the winner as meant: with `spread` None the stronger item, always; else drawn from Bradley-Terry,
       P(i) = 1 / (1 + exp(-(theta_i - theta_j))), theta normal with deviation `spread` (log-odds);
    2. what is reported: the other one with probability `flips`; by an annotator who guesses, with probability 1/2.

With `spread` None only the order of the strengths matters, not their distribution. There are no ties.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from services.preference.active import choose_edges
from services.preference.bradley_terry import Floats, Indices, PairCounts, fit_bradley_terry
from services.preference.crowd import CrowdFit, Votes, fit_crowd, reliabilities
from services.preference.posterior import Belief, fit_belief
from services.preference.ratings import ELO_PER_LOG_ODDS

RATING_PRIOR = 800 / ELO_PER_LOG_ODDS  # as the service rates

Curve = list[tuple[int, float]]  # (labels, Kendall's tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How a campaign is simulated. `check`: labels between two looks at tau; `batch`: pairs chosen at once."""

    spread: float | None = None
    items: int = 200
    annotators: int = 20
    guessing: int = 3
    flips: float = 0.2
    labels: int = 20_000
    batch: int = 100
    check: int = 500


class Campaign:
    """One simulated campaign: whom to ask is drawn, what to ask is said by the caller."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self._rng = np.random.default_rng(seed)
        self.strengths = self._rng.normal(0, world.spread or 1.0, world.items)
        self.guessing = frozenset(self._rng.choice(world.annotators, world.guessing, replace=False).tolist())
        self._reported_as_meant = np.full(world.annotators, 1 - world.flips)
        self._reported_as_meant[list(self.guessing)] = 0.5
        none = np.zeros(0, dtype=np.intp)
        self.votes = Votes(none, none, np.zeros(0), none)

    def __len__(self) -> int:
        return len(self.votes.score)

    def random_pairs(self, count: int) -> Indices:
        """[count, 2] pairs drawn uniformly."""
        first = self._rng.integers(0, self.world.items, count)
        other = (first + self._rng.integers(1, self.world.items, count)) % self.world.items
        return np.stack([first, other], axis=1)

    def ask(self, pairs: Indices) -> None:
        """An answer to each of [count, 2] pairs."""
        first, second = pairs.T
        who = self._rng.integers(0, self.world.annotators, len(pairs))
        lead = self.strengths[first] - self.strengths[second]
        wins = (lead > 0).astype(np.float64) if self.world.spread is None else 1 / (1 + np.exp(-lead))
        meant = self._reported_as_meant[who]
        said = self._rng.random(len(pairs)) < meant * wins + (1 - meant) * (1 - wins)
        before = self.votes
        self.votes = Votes(
            np.concatenate([before.first, first]),
            np.concatenate([before.second, second]),
            np.concatenate([before.score, said.astype(np.float64)]),
            np.concatenate([before.annotator, who]),
        )

    def fit(self, guess: CrowdFit | None = None, tolerance: float = 1e-3) -> CrowdFit:
        """Strengths and reliabilities from all answers so far, as the service rates."""
        world = self.world
        return fit_crowd(
            self.votes,
            world.items,
            world.annotators,
            prior_deviation=RATING_PRIOR,
            guess=guess,
            tolerance=tolerance,
        )

    def believe(self, guess: Belief | None = None) -> Belief:
        """The same for choosing, with a prior as wide as the strengths turn out to be."""
        world = self.world
        return fit_belief(self.votes, world.items, world.annotators, guess=guess, steps=1)

    def plain(self) -> Floats:
        """[items] strengths by Bradley-Terry, all annotators alike."""
        votes, items = self.votes, self.world.items
        codes, where = np.unique(votes.first * items + votes.second, return_inverse=True)
        first, second = np.divmod(codes, items)
        won = np.bincount(where, votes.score).astype(np.float64)
        lost = np.bincount(where, 1 - votes.score).astype(np.float64)
        counts = PairCounts(first, second, won, lost, np.zeros(len(codes)))
        return fit_bradley_terry(counts, items, prior_deviation=RATING_PRIOR).strengths

    def found_guessing(self, found: CrowdFit) -> frozenset[int]:
        """The annotators who are said to answer at random."""
        names = tuple(str(n) for n in range(self.world.annotators))
        return frozenset(
            int(row.annotator) for row in reliabilities(self.votes, found, names) if row.at_random
        )

    def tau(self, strengths: Floats) -> float:
        """Kendall's tau of estimated against true strengths."""
        return kendall_tau(strengths, self.strengths)


def kendall_tau(one: Floats, other: Floats) -> float:
    """Concordant less discordant pairs, over all pairs: 1 is the same order, -1 the reverse (tau-a)."""
    upper = np.triu_indices(len(one), 1)
    agree = np.sign(one[:, None] - one) * np.sign(other[:, None] - other)
    return float(agree[upper].mean())


def random_curve(campaign: Campaign) -> Curve:
    """Tau over labels where pairs are drawn at random."""
    curve: Curve = []
    found = None
    while len(campaign) < campaign.world.labels:
        campaign.ask(campaign.random_pairs(campaign.world.check))
        found = campaign.fit(guess=found)
        curve.append((len(campaign), campaign.tau(found.fit.strengths)))
    return curve


def active_curve(campaign: Campaign, target: float) -> Curve:
    """Tau over labels where pairs are chosen, until it was at least `target` twice in a row."""
    every = np.stack(np.triu_indices(campaign.world.items, 1), axis=1)
    curve: Curve = []
    belief, found = campaign.believe(), None
    while len(campaign) < campaign.world.labels and labels_to_reach(curve, target) is None:
        chosen = choose_edges(campaign.votes, belief, every, campaign.world.batch)
        campaign.ask(every[[proposal.index for proposal in chosen]])
        belief = campaign.believe(belief)
        if len(campaign) % campaign.world.check == 0:
            found = campaign.fit(guess=found)
            curve.append((len(campaign), campaign.tau(found.fit.strengths)))
    return curve


def labels_to_reach(curve: Curve, target: float) -> int | None:
    """Labels at the first of two looks in a row at which tau was at least `target`."""
    for (labels, tau), (_, after) in itertools.pairwise(curve):
        if min(tau, after) >= target:
            return labels
    return None
