"""The walks' graph, data and measure against the numbers that were worked out for them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from services.common.tasks import randomwalks
from services.common.tasks.randomwalks import LETTERS, VOCABULARY, RandomWalks, nodes_of, random_walks, score


@pytest.fixture(scope="module")
def task() -> RandomWalks:
    return random_walks()


def test_worked_out_numbers_of_seed_1000(task: RandomWalks) -> None:
    """Uniform walks 0.346, the data's mean 0.352, the best walk of the data from each start 0.992, from m 0.833."""
    assert task.uniform_optimality() == pytest.approx(0.346, abs=5e-4)
    assert np.mean([task.optimality(walk) for walk in task.walks]) == pytest.approx(0.352, abs=5e-4)
    best = task.best_of_data()
    assert np.mean(list(best.values())) == pytest.approx(0.992, abs=5e-4)
    assert {LETTERS[node]: value for node, value in best.items() if value < 1} == {"m": pytest.approx(5 / 6)}


def test_ten_of_thirty_graphs_have_a_start_that_cannot_arrive() -> None:
    """Of the seeds 1000 to 1029, ten; their starts leave it out, and those of seed 1000 are the letters b to u."""
    short = [seed for seed in range(1000, 1030) if len(random_walks(seed).starts) < 20]
    assert len(short) == 10
    assert "".join(random_walks(1000).prompts) == LETTERS[1:]


def test_the_graph_has_edges_from_every_node_and_an_absorbing_goal(task: RandomWalks) -> None:
    """No node but the goal leads to itself, each leads somewhere, and from the goal nothing leads away."""
    assert np.diag(task.adjacency).tolist() == [True] + [False] * 20
    assert task.adjacency.any(1).all()
    assert task.adjacency[0].sum() == 1


def test_walks_follow_edges_and_end_at_the_goal_or_after_ten_nodes(task: RandomWalks) -> None:
    """1,000 of them, none from the goal, each edge of the graph, the goal only at the end."""
    assert len(task.walks) == 1000
    for walk in task.walks:
        assert 2 <= len(walk) <= 10
        assert 0 not in walk[:-1]
        assert walk[-1] == 0 or len(walk) == 10
        assert all(task.adjacency[a, b] for a, b in itertools.pairwise(walk))
    assert set(Counter(walk[0] for walk in task.walks)) == set(range(1, 21))


def test_shortest_lengths_against_matrix_powers(task: RandomWalks) -> None:
    """A node's shortest walk has k + 1 nodes for the least k with a path of k edges in the k-th power."""
    power, steps = np.eye(21, dtype=int), 0
    found = dict.fromkeys(range(21), 0)
    while steps < 9:
        for node in range(21):
            if power[node, 0] and not found[node]:
                found[node] = steps + 1
        power, steps = np.minimum(power @ task.adjacency, 1), steps + 1
    assert tuple(found.values()) == task.shortest
    assert task.shortest[0] == 1


@pytest.fixture
def line() -> RandomWalks:
    """d -> c -> b -> a, and d -> b."""
    adjacency = np.zeros((21, 21), dtype=bool)
    for edge in ((0, 0), (1, 0), (2, 1), (3, 2), (3, 1)):
        adjacency[edge] = True
    return RandomWalks(0, adjacency, ((3, 2, 1, 0), (2, 1, 0)), (1, 2, 3, 3) + (0,) * 17)


@pytest.mark.parametrize(
    ("walk", "optimality"),
    [
        ("dba", 1.0),
        ("dcba", 6 / 7),  # (10 - 4) / (10 - 3)
        ("dbaXX", 1.0),  # what follows the goal is not looked at
        ("db", 0.0),  # does not arrive
        ("da", 0.0),  # no such edge
        ("dXba", 0.0),  # no such node
        ("dBa", 0.0),  # letters are small
        ("", 0.0),
        ("a", 0.0),  # the goal is no start
        ("eba", 0.0),  # a start without a way
    ],
)
def test_optimality(line: RandomWalks, walk: str, optimality: float) -> None:
    """(10 - length) / (10 - shortest) for walks that arrive along edges, else 0."""
    assert line.optimality(nodes_of(walk)) == pytest.approx(optimality)


def test_the_goal_must_be_among_the_first_ten_nodes(line: RandomWalks) -> None:
    """A loop of eight edges before the goal makes ten nodes, which is worth 0 of the way; one more is not valid."""
    line.adjacency[1, 2] = True
    assert line.length(nodes_of("dbcbcbcbba")) is None
    assert line.length(nodes_of("cbcbcbcba")) == 9
    assert line.optimality(nodes_of("cbcbcbcba")) == pytest.approx(1 / 7)
    assert line.length(nodes_of("dcbcbcbcba")) == 10
    assert line.length(nodes_of("cbcbcbcbcba")) is None


def test_best_of_data_and_uniform_optimality_by_hand(line: RandomWalks) -> None:
    """From d half the walks are of 3 nodes and half of 4; from c and b all arrive the shortest way."""
    assert line.starts == (1, 2, 3)
    assert line.best_of_data() == {1: 0.0, 2: 1.0, 3: pytest.approx(6 / 7)}
    line.adjacency[4:, 0] = True  # the unused nodes need an edge somewhere
    assert line.uniform_optimality() == pytest.approx((1 + 1 + (1 + 6 / 7) / 2) / 3)


def test_score_joins_prompt_and_completion_and_takes_the_graph_of_the_row(task: RandomWalks) -> None:
    """Blanks between the letters do not matter; a column graph_seed names another graph."""
    start = task.starts[0]
    walk = next(walk for walk in task.walks if walk[0] == start and task.optimality(walk) > 0)
    text = "".join(LETTERS[node] for node in walk)
    assert score([text[0], text[0]], [text[1:], " ".join(text[1:])]) == [task.optimality(walk)] * 2
    other = random_walks(1001)
    assert score([text[0]] * 2, [text[1:]] * 2, graph_seed=[None, "1001"]) == [
        task.optimality(walk),
        other.optimality(walk),
    ]


def test_the_vocabulary_has_23_tokens_and_a_letters_id_is_its_node() -> None:
    """21 letters, padding and end."""
    assert len(VOCABULARY) == 23
    assert [VOCABULARY.index(letter) for letter in LETTERS] == list(range(21))
    assert (VOCABULARY[randomwalks.PAD_ID], VOCABULARY[randomwalks.END_ID]) == ("<pad>", "<eos>")
