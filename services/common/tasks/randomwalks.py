"""Random walks on a small directed graph: find the shortest way to the goal from walks that rarely take it.

Source: trlX, examples/randomwalks, after Decision Transformer (arXiv 2106.01345). Nodes are the letters a to u; a is
the goal and absorbing. A walk is a text such as "mqdsa": the prompt is its first letter, the completion the rest.

    optimality = (10 - length) / (10 - shortest),  length in nodes, both ends counted; 0 where an edge is missing or
                                                   the goal is not among the first 10 nodes

Known for seed 1000: uniform walks 0.346, the data's mean 0.352, the best walk in the data from each start 0.992.
This module draws graph and data and measures walks; it knows no model and no tokenizer beyond `VOCABULARY`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NODES = 21
GOAL = 0
MAX_LENGTH = 10
"""Nodes of a walk at most, the start included."""
WALKS = 1000
EDGE_ABOVE = 0.9
SEED = 1000
"""The graph of the figures. In ten of the seeds 1000 to 1029 a start cannot reach the goal; here all can."""

LETTERS = "".join(chr(ord("a") + node) for node in range(NODES))
VOCABULARY = (*LETTERS, "<pad>", "<eos>")
"""Tokens by id: a letter's id is its node. 23 in all."""
PAD_ID, END_ID = NODES, NODES + 1


@dataclass(frozen=True, slots=True)
class RandomWalks:
    """A graph, its data and the lengths of its shortest walks.

    adjacency: [21, 21] bool, from row to column. walks: the data, tuples of nodes. shortest: for each node the number
    of nodes on its shortest walk to the goal; 0 where there is none of at most 10.
    """

    seed: int
    adjacency: npt.NDArray[np.bool_]
    walks: tuple[tuple[int, ...], ...]
    shortest: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Nodes other than the goal that can reach it in time."""
        return tuple(node for node in range(NODES) if node != GOAL and 0 < self.shortest[node] < MAX_LENGTH)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The starts as letters."""
        return tuple(LETTERS[node] for node in self.starts)

    def length(self, walk: Sequence[int]) -> int | None:
        """Nodes up to the goal; None where an edge is missing before, or the first 10 do not hold it."""
        for at, node in enumerate(walk[:MAX_LENGTH]):
            if not 0 <= node < NODES or (at > 0 and not self.adjacency[walk[at - 1], node]):
                return None
            if node == GOAL:
                return at + 1
        return None

    def optimality(self, walk: Sequence[int]) -> float:
        """Of one walk, by nodes, the start first, in [0, 1]; what follows the goal is not looked at."""
        length = self.length(walk)
        if length is None or walk[0] not in self.starts:
            return 0.0
        return (MAX_LENGTH - length) / (MAX_LENGTH - self.shortest[walk[0]])

    def best_of_data(self) -> dict[int, float]:
        """The highest optimality in the data from each start."""
        best = dict.fromkeys(self.starts, 0.0)
        for walk in self.walks:
            if walk[0] in best:
                best[walk[0]] = max(best[walk[0]], self.optimality(walk))
        return best

    def uniform_optimality(self) -> float:
        """Expected optimality of uniform walks, exactly, mean over the starts."""
        moves = self.adjacency / self.adjacency.sum(1, keepdims=True)
        total = 0.0
        for start in self.starts:
            place = np.zeros(NODES)
            place[start] = 1.0
            for length in range(2, MAX_LENGTH + 1):
                place = place @ moves
                total += place[GOAL] * (MAX_LENGTH - length) / (MAX_LENGTH - self.shortest[start])
                place[GOAL] = 0.0  # arrived
        return float(total / len(self.starts))


@functools.lru_cache(maxsize=32)
def random_walks(seed: int = SEED) -> RandomWalks:
    """Graph and 1,000 walks of a seed. Cached: treat it as read-only."""
    rng = np.random.RandomState(seed)  # the source's generator, so that its graphs are ours
    adjacency = _graph(rng)
    walks = tuple(_walk(rng, adjacency) for _ in range(WALKS))
    return RandomWalks(seed, adjacency, walks, _shortest(adjacency))


def nodes_of(text: str) -> list[int]:
    """Nodes of a text of letters, white space left out; -1 for what is no node."""
    return [LETTERS.find(letter) for letter in "".join(text.split())]


def score(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Optimality of prompt + completion: a reward function, `services.common.tasks.randomwalks:score`.

    A data-set column `graph_seed` names another graph than that of seed 1000.
    """
    seeds = columns.get("graph_seed") or [None] * len(prompts)
    return [
        random_walks(SEED if seed is None else int(seed)).optimality(nodes_of(prompt + completion))
        for prompt, completion, seed in zip(prompts, completions, seeds, strict=True)
    ]


def _graph(rng: np.random.RandomState) -> npt.NDArray[np.bool_]:
    """Edges with probability 0.1, none to oneself, drawn anew until every node has one; then the goal absorbs."""
    while True:
        adjacency = rng.rand(NODES, NODES) > EDGE_ABOVE
        np.fill_diagonal(adjacency, False)
        if adjacency.any(1).all():
            break
    adjacency[GOAL] = False
    adjacency[GOAL, GOAL] = True
    return adjacency


def _walk(rng: np.random.RandomState, adjacency: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """From a random start other than the goal, along random edges, until the goal or 10 nodes."""
    node = GOAL
    while node == GOAL:
        node = int(rng.randint(NODES))
    walk = [node]
    while node != GOAL and len(walk) < MAX_LENGTH:
        node = int(rng.choice(np.nonzero(adjacency[node])[0]))
        walk.append(node)
    return tuple(walk)


def _shortest(adjacency: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Breadth first from the goal against the edges: nodes on the shortest walk, 0 beyond 10."""
    lengths = np.zeros(NODES, dtype=int)
    reached = np.zeros(NODES, dtype=bool)
    reached[GOAL] = True
    for length in range(1, MAX_LENGTH + 1):
        lengths[reached & (lengths == 0)] = length
        reached |= adjacency[:, reached].any(1)
    return tuple(int(length) for length in lengths)
