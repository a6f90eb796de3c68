"""Which pairs are asked about next: by hand, against a simulation, and what must never be chosen."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

from services.preference.active import Proposal, choose, choose_pairs
from services.preference.crowd import fit_crowd, vote_information
from services.preference.posterior import islands
from services.preference.ratings import Game, Games


class Task(NamedTuple):
    task_id: str
    first: str
    second: str


def indices(proposals: list[Proposal]) -> list[int]:
    return [proposal.index for proposal in proposals]


def test_what_is_known_is_not_asked_again() -> None:
    """a and b met 40 times, c and d never: that pair comes first, and its gain is at most one bit."""
    games = [Game("a", "b", score) for score in (1.0, 1.0, 1.0, 0.0)] * 10
    first, second = choose_pairs(games, [("a", "b"), ("c", "d")], 5)
    assert (first.index, second.index) == (1, 0)
    assert math.log(2) > first.gain > 3 * second.gain > 0


def test_what_follows_from_other_answers_is_not_asked() -> None:
    """a beats b and b beats c, ten times each: that a beats c is known, though nobody was asked."""
    games = [Game("a", "b", 1.0), Game("b", "c", 1.0)] * 10
    neighbours, far = choose_pairs(games, [("a", "c"), ("a", "b")], 2)
    assert (neighbours.index, far.index) == (1, 0)
    assert neighbours.gain > 2 * far.gain


def test_a_batch_spreads_over_subjects() -> None:
    """Of six subjects that nobody compared, three pairs touch all six; a pair under way counts as answered."""
    pairs = list(itertools.combinations("abcdef", 2))
    chosen = [pairs[index] for index in indices(choose_pairs([], pairs, 3))]
    assert sorted(name for pair in chosen for name in pair) == list("abcdef")
    waiting = choose_pairs([], pairs, 2, pending=[("b", "a")])
    assert sorted(name for index in indices(waiting) for name in pairs[index]) == list("cdef")


def test_each_offer_is_chosen_once_and_nothing_against_itself() -> None:
    """The same pair may be offered twice and then taken twice, after everything else; a subject never meets itself."""
    offers = [("a", "b"), ("a", "a"), ("b", "a"), ("c", "d")]
    chosen = choose_pairs([], offers, 10)
    assert sorted(indices(chosen)) == [0, 2, 3]
    assert chosen[2].index in (0, 2)
    assert chosen[2].gain < chosen[1].gain == pytest.approx(chosen[0].gain)
    assert choose_pairs([], [("a", "a")], 3) == []
    assert choose_pairs([], [], 3) == []
    assert choose_pairs([], offers, 0) == []


def test_ties_alone_choose_nothing() -> None:
    """After ties alone nothing else is expected, and the drawn order stays; a first win makes a choice."""
    tasks = [Task(f"t{n}", f"{n}/a", f"{n}/b") for n in range(100)]
    ties = [Game("0/a", "0/b", 0.5), Game("1/a", "1/b", 0.5)]
    assert choose(ties, tasks) == []
    assert "t50" in choose([*ties, Game("0/a", "0/b", 1.0)], tasks)


def test_tasks_are_named_by_their_ids() -> None:
    """For assignment: the task of the pair that nobody compared comes before the one that was compared often."""
    tasks = [Task("t1", "i/a", "i/b"), Task("t2", "j/a", "j/b")]
    games = [Game("i/a", "i/b", score) for score in (1.0, 0.0)] * 20
    assert choose(games, tasks) == ["t2", "t1"]
    assert choose(games, tasks, limit=1) == ["t2"]
    assert choose([], []) == []


def test_the_same_input_gives_the_same_output() -> None:
    """Whatever the order of the games."""
    rng = np.random.default_rng(5)
    names = [f"s{n}" for n in range(12)]
    games = [
        Game(*rng.choice(names, 2, replace=False).tolist(), float(rng.integers(0, 2))) for _ in range(60)
    ]
    pairs = list(itertools.combinations(names, 2))
    assert choose_pairs(games, pairs, 20) == choose_pairs(games, pairs, 20)
    assert indices(choose_pairs(games[::-1], pairs, 20)) == indices(choose_pairs(games, pairs, 20))


def test_the_greedy_choice_is_the_largest_gain_each_time() -> None:
    """Choosing one by one, with what was chosen as pending, gives the same batch: lazy evaluation skips nothing."""
    rng = np.random.default_rng(6)
    names = [f"s{n}" for n in range(15)]
    games = [
        Game(*rng.choice(names, 2, replace=False).tolist(), float(rng.integers(0, 2))) for _ in range(80)
    ]
    pairs = list(itertools.combinations(names, 2))
    batch = indices(choose_pairs(games, pairs, 12))
    for count in range(12):
        left = [n for n in range(len(pairs)) if n not in batch[:count]]
        offered = [pairs[n] for n in left]
        (one,) = choose_pairs(games, offered, 1, pending=[pairs[n] for n in batch[:count]])
        assert left[one.index] == batch[count]


def test_islands_are_the_one_large_matrix() -> None:
    """Inverting island by island gives what inverting the whole precision matrix gives."""
    games = [Game("a", "b", 1.0), Game("b", "c", 1.0), Game("d", "e", 0.5)]
    table = Games.of(games)
    found = fit_crowd(table.votes, 5, 1, prior_deviation=2.0)
    made, island_of = islands(table.votes, found, 2.0)
    assert island_of.tolist() == [0, 0, 0, 1, 1]
    whole = np.eye(5) / 4
    for one, other, weight in zip(
        table.first, table.second, vote_information(table.votes, found), strict=True
    ):
        along = np.eye(5)[one] - np.eye(5)[other]
        whole += weight * np.outer(along, along)
    covariance = np.linalg.inv(whole)
    for island in made:
        assert island.covariance == pytest.approx(covariance[np.ix_(island.members, island.members)])
        count = len(island.members)
        centred = np.eye(count) - 1 / count
        assert island.deviations() ** 2 == pytest.approx(np.diag(centred @ island.covariance @ centred))


def test_many_candidates_of_many_prompts() -> None:
    """Three answers to each of 400 prompts, one pair of each compared: the other pairs come first."""
    games = [Game(f"{n}/a", f"{n}/b", float(n % 2)) for n in range(400)]
    pairs = [pair for n in range(400) for pair in itertools.combinations((f"{n}/a", f"{n}/b", f"{n}/c"), 2)]
    chosen = choose_pairs(games, pairs, 400)
    assert len({index // 3 for index in indices(chosen)}) == 400
    assert all(index % 3 != 0 for index in indices(chosen))
