"""Owns what a page answers, brought to the tasks it is about. Inside a transaction; knows no wire.

An answer names places as the annotator saw them; which candidate stood where is drawn anew from the same hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotFound, TrimtabError
from services.common.validation import require
from services.preference import leasing, recording
from services.preference.assignment import Kind, Unit, is_ranked
from services.preference.domain import Choice, Comparison, check_comparisons, content_id
from services.preference.ranking import check_ranks, pair_comparisons


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAnswer:
    """One answer to one unit, or (`withdrawn`) the wish to take it back.

    `ranks`: the place, 1 the best, of each answer in the order shown; of a pair (1, 2) is the first, (1, 1) a tie.
    `choice`: SKIP or FLAG instead. `revision`: rises with everything that a page says about the unit.
    """

    annotator: str
    unit_id: str
    kind: Kind
    revision: int
    ranks: tuple[int, ...] = ()
    choice: Choice | None = None
    withdrawn: bool = False
    confidence: float | None = None
    comment: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: `new` comparisons kept or taken back, or why it is refused and need not come again."""

    new: int = 0
    refused: str = ""


def answer_all(
    session: Session, answers: Sequence[UnitAnswer], rules: recording.Rules, until: float
) -> list[Outcome]:
    """Each in turn; one that is refused changes nothing and stops no other."""
    outcomes = []
    for answer in answers:
        try:
            outcomes.append(Outcome(_answer(session, answer, rules, until)))
        except TrimtabError as error:
            outcomes.append(Outcome(refused=str(error)))
    return outcomes


def unit_of(session: Session, unit_id: str, kind: Kind) -> Unit:
    """A unit by its id, whoever holds it. NotFound where there is none."""
    rows = leasing.rows_of_unit(session, unit_id)
    if kind == "pair":
        rows = [row for row in rows if row.task_id == unit_id]
    tasks = tuple(leasing.as_task(row, row.lease_until) for row in rows)
    if not tasks or (kind == "ranking" and (tasks[0].task_id != unit_id or not is_ranked(tasks[0].item))):
        raise NotFound(f"task {unit_id} is not known")
    return Unit(kind, tasks)


def _answer(session: Session, answer: UnitAnswer, rules: recording.Rules, until: float) -> int:
    unit = unit_of(session, answer.unit_id, answer.kind)
    if answer.withdrawn:
        ids = [task.task_id for task in unit.tasks]
        return recording.withdraw(session, answer.annotator, ids, answer.revision, rules, until)
    comparisons = comparisons_of(unit, answer)
    check_comparisons(comparisons)
    return recording.record(session, comparisons, rules)


def comparisons_of(unit: Unit, answer: UnitAnswer) -> list[Comparison]:
    """What an answer says about each pair, sides as shown. InvalidInput where it fits the unit not."""
    require(answer.revision > 0, "revision", "expected a positive number")
    shown = unit.shown(answer.annotator)
    ranks: dict[str, int] | Choice
    if answer.choice is not None:
        if answer.choice not in (Choice.SKIP, Choice.FLAG):
            raise InvalidInput("choice: expected skip or flag, or ranks instead")
        ranks = answer.choice
    else:
        check_ranks(answer.ranks, len(shown))
        ranks = dict(zip(shown, answer.ranks, strict=True))
    template = Comparison(
        task_id="",
        annotator=answer.annotator,
        first_candidate_id="",
        second_candidate_id="",
        choice=Choice.SKIP,
        confidence=answer.confidence,
        comment=answer.comment,
        ranking_id=content_id(unit.unit_id, answer.annotator) if unit.kind == "ranking" else "",
        seconds=answer.seconds,
        revision=answer.revision,
    )
    return pair_comparisons(unit.tasks, ranks, template, shown)
