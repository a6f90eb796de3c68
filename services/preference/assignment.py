"""Owns who gets what: overlap, gold items, pairs or rankings, and the port "which tasks next". Pure.

upload ─▶ wanted_answers()          how many annotators a task is for
asking ─▶ gold_due()                whether the next task is one whose answer is known
       ─▶ is_ranked_count()         whether an item is shown whole
labels ─▶ Chooser(games, tasks)     the order in which open tasks go out; see choosing.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.preference.domain import Item, Task, content_id
from services.preference.ratings import Game

MIN_RANKED, MAX_RANKED = 3, 9
Kind = Literal["pair", "ranking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """How tasks are given out.

    `overlap_share` of the items go to `overlap_annotators` each, one after the other, the rest to one.
    `gold_every`: one of so many tasks of an annotator is gold; 0: none.
    `undo_seconds`: an answer can be taken back or replaced for so long.
    """

    overlap_annotators: int = 1
    overlap_share: float = 0.0
    gold_every: int = 0
    undo_seconds: float = 3600.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """What one annotator sees at once: a pair, or all pairs of an item to be ranked.

    `revision`: the highest with which the annotator took something of it back; what is said next needs a higher one.
    """

    kind: Kind
    tasks: tuple[Task, ...]
    revision: int = 0

    @property
    def unit_id(self) -> str:
        """The task of a pair; the least task of a ranking."""
        return min(task.task_id for task in self.tasks)

    @property
    def item(self) -> Item:
        """What it is about."""
        return self.tasks[0].item

    @property
    def lease_until(self) -> float:
        """Unix seconds."""
        return min(task.lease_until for task in self.tasks)

    def shown(self, annotator: str) -> list[str]:
        """Candidate ids in the order in which this annotator sees them: drawn, but always the same."""
        if self.kind == "pair":
            ids = [self.tasks[0].first_candidate_id, self.tasks[0].second_candidate_id]
        else:
            ids = [candidate.candidate_id for candidate in self.item.candidates]
        return shown_order(self.item.item_id, ids, annotator)


def shown_order(item_id: str, candidate_ids: Sequence[str], annotator: str) -> list[str]:
    """The ids as an annotator sees them: another order for another annotator, so that no side is favoured."""
    return sorted(candidate_ids, key=lambda candidate: content_id(annotator, item_id, candidate))


def wanted_answers(item: Item, assignment: Assignment) -> int:
    """How many annotators each task of an item is for: its own number, or by a draw from seed and item."""
    if item.annotators:
        return item.annotators
    drawn = hashlib.blake2b(f"overlap:{assignment.seed}:{item.item_id}".encode(), digest_size=8).digest()
    chosen = int.from_bytes(drawn, "big") < assignment.overlap_share * 2**64
    return assignment.overlap_annotators if chosen else 1


def gold_due(answers: int, gold_answers: int, gold_every: int) -> bool:
    """Whether an annotator with so many answers, gold ones among them, should get a gold task now."""
    return gold_every > 0 and gold_answers * gold_every <= answers


def is_ranked_count(candidates: int) -> bool:
    """Whether an item with so many answers is one for ranking: with three to nine, one keystroke each."""
    return MIN_RANKED <= candidates <= MAX_RANKED


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that waits for an answer; its candidates named as games name them."""

    task_id: str
    first: str
    second: str


class Chooser(Protocol):
    """The port "which tasks next". Without one, tasks go out in the order drawn at upload: random choice."""

    def __call__(self, games: Sequence[Game], tasks: Sequence[OpenTask]) -> Sequence[str]:
        """Ids of open tasks, the next one first. What it leaves out follows in the drawn order."""
        ...
