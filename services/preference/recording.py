"""Owns what happens to an answer: kept, a repetition, a replacement, too old, refused. Inside a transaction.

of the same annotator and task            what happens
none                                      kept, unless a later one was taken back
an equal revision, the same answer        nothing: a repetition
an equal revision, another answer         Mismatch
a lower revision than the new one's       replaced, if it is not too long ago
a higher revision                         nothing: the new one is a late copy
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import delete, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, Mismatch, NotFound
from services.preference.domain import Choice, Comparison
from services.preference.tables import AnnotatorRow, ComparisonRow, TaskRow, WithdrawnRow, comparison_of

Key = tuple[str, str]  # task, annotator


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`late`: answers are kept though the task is someone else's by now, or has its answers already."""

    now: float
    undo_seconds: float
    late: bool = False


@dataclass(slots=True)
class _Known:
    """What the database says of the tasks in question."""

    tasks: dict[str, TaskRow]
    said: dict[Key, Comparison]
    others: dict[str, str]  # task -> someone who answered it
    withdrawn: dict[Key, int]  # the highest revision that was taken back


@dataclass(slots=True)
class _Changes:
    kept: dict[Key, Comparison] = field(default_factory=dict)
    replaced: list[Comparison] = field(default_factory=list)


def record(session: Session, comparisons: Sequence[Comparison], rules: Rules) -> int:
    """Write all or raise: how many are new. See PreferenceStore.record."""
    known = _look(session, {comparison.task_id for comparison in comparisons})
    changes = _Changes()
    for comparison in comparisons:
        task = known.tasks.get(comparison.task_id)
        if task is None:
            raise NotFound(f"task {comparison.task_id} is not known")
        shown = _as_shown(comparison, task)
        if _is_new(shown, known, task, rules, changes):
            key = (shown.task_id, shown.annotator)
            changes.kept[key] = known.said[key] = shown
    if changes.kept:
        _withdraw_rows(session, changes.replaced, rules.now)
        _know_annotators(session, {annotator for _, annotator in changes.kept}, rules.now)
        session.execute(
            insert(ComparisonRow),
            [_values(kept, known.tasks[kept.task_id], rules.now) for kept in changes.kept.values()],
        )
        _recount(session, changes.kept)
    return len(changes.kept)


def withdraw(
    session: Session, annotator: str, task_ids: Sequence[str], revision: int, rules: Rules, until: float
) -> int:
    """Take answers back and lease their tasks to the annotator again; how many. See PreferenceStore.withdraw."""
    known = _look(session, set(task_ids))
    mine = [known.said[key] for task in task_ids if (key := (task, annotator)) in known.said]
    taken = [_check_recent(said, rules) for said in mine if said.revision < revision]
    if not taken:
        return 0
    _withdraw_rows(session, taken, rules.now, revision)
    _recount(session, [(said.task_id, annotator) for said in taken])
    session.execute(
        update(TaskRow)
        .where(TaskRow.task_id.in_([said.task_id for said in taken]), TaskRow.gold.is_(False))
        .where(TaskRow.lease_until <= rules.now)
        .values(lease_holder=annotator, lease_until=until)
        .execution_options(synchronize_session=False)
    )
    return len(taken)


def _look(session: Session, ids: set[str]) -> _Known:
    # In order, so that two that lock several rows never wait for each other.
    rows = session.scalars(
        select(TaskRow).where(TaskRow.task_id.in_(ids)).order_by(TaskRow.task_id).with_for_update()
    )
    tasks = {row.task_id: row for row in rows}
    answers = [
        comparison_of(row)
        for row in session.scalars(select(ComparisonRow).where(ComparisonRow.task_id.in_(ids)))
    ]
    highest = (
        select(WithdrawnRow.task_id, WithdrawnRow.annotator, func.max(WithdrawnRow.revision))
        .where(WithdrawnRow.task_id.in_(ids))
        .group_by(WithdrawnRow.task_id, WithdrawnRow.annotator)
    )
    return _Known(
        tasks,
        {(said.task_id, said.annotator): said for said in answers},
        {said.task_id: said.annotator for said in answers},
        {(task, annotator): most for task, annotator, most in session.execute(highest)},
    )


def _is_new(comparison: Comparison, known: _Known, task: TaskRow, rules: Rules, changes: _Changes) -> bool:
    """False for a repetition and a late copy. Mismatch where it cannot be kept."""
    key = (comparison.task_id, comparison.annotator)
    before = known.said.get(key)
    if before is None:
        if 0 < comparison.revision <= known.withdrawn.get(key, -1):
            return False
        if not (rules.late or task.gold):
            _check_free(comparison, known, task, rules.now)
        return True
    if comparison.revision < before.revision:
        return False
    if comparison.revision == before.revision:
        if before.preferred == comparison.preferred:
            return False
        raise Mismatch(f"task {task.task_id} has another answer already, by {before.annotator}")
    if before.preferred == comparison.preferred and before.comment == comparison.comment:
        return False
    if key not in changes.kept:
        changes.replaced.append(_check_recent(before, rules))
    return True


def _check_free(comparison: Comparison, known: _Known, task: TaskRow, now: float) -> None:
    if task.answered:
        raise Mismatch(f"task {task.task_id} has another answer already, by {known.others[task.task_id]}")
    if task.lease_until > now and task.lease_holder != comparison.annotator:
        raise Mismatch(f"task {task.task_id} is leased to someone else by now")


def _check_recent(said: Comparison, rules: Rules) -> Comparison:
    if rules.now - said.recorded_at > rules.undo_seconds:
        raise Mismatch(f"the answer to task {said.task_id} is older than {rules.undo_seconds:g} s and stands")
    return said


def _as_shown(comparison: Comparison, task: TaskRow) -> Comparison:
    """The comparison with its item and candidates; an annotator may have shown them the other way round."""
    sides = (comparison.first_candidate_id, comparison.second_candidate_id)
    expected = (task.first_candidate_id, task.second_candidate_id)
    if sides == ("", ""):
        sides = expected
    if sides not in (expected, expected[::-1]) or comparison.item_id not in ("", task.item_id):
        raise InvalidInput(
            f"task {task.task_id} compares {expected[0]} and {expected[1]} of item {task.item_id}",
            {"first_candidate_id": expected[0], "second_candidate_id": expected[1], "item_id": task.item_id},
        )
    return replace(
        comparison, item_id=task.item_id, first_candidate_id=sides[0], second_candidate_id=sides[1]
    )


def _withdraw_rows(
    session: Session, taken: Sequence[Comparison], now: float, revision: int | None = None
) -> None:
    if not taken:
        return
    rows = [
        {
            "task_id": said.task_id,
            "annotator": said.annotator,
            "choice": said.choice.value,
            "preferred": said.preferred,
            "recorded_at": said.recorded_at,
            "withdrawn_at": now,
            "revision": said.revision if revision is None else revision,
        }
        for said in taken
    ]
    session.execute(insert(WithdrawnRow), rows)
    keys = [(said.task_id, said.annotator) for said in taken]
    session.execute(
        delete(ComparisonRow)
        .where(tuple_(ComparisonRow.task_id, ComparisonRow.annotator).in_(keys))
        .execution_options(synchronize_session=False)
    )


def _recount(session: Session, keys: Iterable[Key]) -> None:
    """Bring the tasks' counts up to date, and free what those who answered held."""
    keys = list(keys)
    ids = {task for task, _ in keys}
    answers = (
        select(func.count())
        .where(ComparisonRow.task_id == TaskRow.task_id)
        .correlate(TaskRow)
        .scalar_subquery()
    )
    counted = update(TaskRow).where(TaskRow.task_id.in_(ids)).execution_options(synchronize_session=False)
    session.execute(
        counted.values(answers=answers, answered=(answers >= TaskRow.wanted) & TaskRow.gold.is_(False))
    )
    over = TaskRow.answered.is_(True) | TaskRow.lease_holder.in_({annotator for _, annotator in keys})
    session.execute(counted.where(over).values(lease_holder="", lease_until=0.0))


def _know_annotators(session: Session, names: set[str], now: float) -> None:
    known = set(session.scalars(select(AnnotatorRow.name).where(AnnotatorRow.name.in_(names))))
    session.add_all(AnnotatorRow(name=name, first_seen=now) for name in sorted(names - known))
    session.flush()


def _values(comparison: Comparison, task: TaskRow, now: float) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "item_id": task.item_id,
        "campaign": task.campaign,
        "annotator": comparison.annotator,
        "first_candidate_id": comparison.first_candidate_id,
        "second_candidate_id": comparison.second_candidate_id,
        "choice": Choice(comparison.choice).value,
        "confidence": comparison.confidence,
        "comment": comparison.comment,
        "recorded_at": now,
        "ranking_id": comparison.ranking_id,
        "seconds": comparison.seconds,
        "revision": comparison.revision,
        "gold": task.gold,
    }
