"""Items, answers and a clock for the preference tests."""

from __future__ import annotations

from dataclasses import dataclass

from services.preference.answering import UnitAnswer
from services.preference.assignment import Unit
from services.preference.domain import Candidate, Choice, Comparison, Item, Message, Task
from services.preference.store import PreferenceStore


@dataclass
class Clock:
    """Unix seconds that only move when told."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def item(number: int, *texts: str, campaign: str = "", sources: tuple[str, ...] = ()) -> Item:
    texts = texts or ("one", "two")
    return Item(
        item_id=f"item-{number}",
        prompt=(Message("user", f"question {number}"),),
        candidates=tuple(
            Candidate(candidate_id=f"c{n}", text=text, source=sources[n] if sources else "")
            for n, text in enumerate(texts)
        ),
        campaign=campaign,
        prompt_id=f"prompt-{number}",
    )


def answer(task: Task, annotator: str, choice: Choice = Choice.FIRST) -> Comparison:
    return Comparison(
        task_id=task.task_id,
        annotator=annotator,
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        choice=choice,
    )


def said(unit: Unit, annotator: str, *ranks: int, revision: int = 1, **more: object) -> UnitAnswer:
    return UnitAnswer(
        annotator=annotator,
        unit_id=unit.unit_id,
        kind=unit.kind,
        revision=revision,
        ranks=ranks,
        **more,  # type: ignore[arg-type]
    )


def preferred(store: PreferenceStore) -> list[str]:
    return [comparison.preferred for comparison, _ in store.page(gold=True).rows]
