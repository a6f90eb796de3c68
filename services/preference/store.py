"""Owns items, tasks, leases and comparisons, durably. Synchronous; knows no wire, no event loop, no rating.

A task is open until one comparison of it is recorded. A lease says who may answer it for now; time comes from
the clock given, in Unix seconds. Every public method is one transaction: all of it happens, or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, selectinload

from services.common.errors import ConfigError, InvalidInput, Mismatch, NotFound, TrimtabError
from services.preference import reports
from services.preference.database import Database
from services.preference.domain import (
    MAX_TASKS,
    Comparison,
    Item,
    Statistics,
    Subject,
    Task,
    check_annotator,
    check_comparisons,
    check_items,
    plan_tasks,
)
from services.preference.ratings import Game
from services.preference.reports import Cursor, Page
from services.preference.tables import (
    SCHEMA,
    AnnotatorRow,
    CandidateRow,
    ComparisonRow,
    ItemRow,
    SchemaRow,
    Table,
    TaskRow,
    candidate_values,
    comparison_of,
    item_of,
    item_values,
    task_values,
)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """How many items of an upload are new, and how many were left alone."""

    accepted: int
    already_present: int


class PreferenceStore:
    """The comparisons of any number of campaigns. An empty campaign in a query means all of them."""

    def __init__(
        self,
        database_url: str,
        *,
        lease_seconds: float = 600.0,
        seed: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the database and makes its tables. `seed` draws sides and order of new tasks.

        Raises ConfigError for a URL or a schema that cannot be used, ServiceError for a database that fails.
        """
        self._database = Database(database_url, Table)
        self._run = self._database.transaction
        self._lease_seconds = lease_seconds
        self._seed = seed
        self._clock = clock
        try:
            self._run(_check_schema)
        except TrimtabError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def upload(self, items: Sequence[Item]) -> Uploaded:
        """Add items and their K(K-1)/2 tasks each. An item_id that is already there is left alone."""
        check_items(items)
        return self._run(lambda session: self._upload(session, items))

    def next_tasks(self, annotator: str, *, campaign: str = "", limit: int = 1) -> list[Task]:
        """Lease open tasks to an annotator, first those it holds already: a lost answer costs nothing."""
        check_annotator(annotator)
        if not 1 <= limit <= MAX_TASKS:
            raise InvalidInput(
                f"max_tasks: expected 1 to {MAX_TASKS}, got {limit}", {"max_tasks": f"1 to {MAX_TASKS}"}
            )
        return self._run(lambda session: self._lease(session, annotator, campaign, limit))

    def release(self, annotator: str) -> int:
        """Free what an annotator holds; how many tasks that were."""
        held = update(TaskRow).where(TaskRow.lease_holder == annotator, TaskRow.answered.is_(False))
        freed = held.values(lease_holder="", lease_until=0.0)
        return self._run(lambda session: int(getattr(session.execute(freed), "rowcount", 0)))

    def record(self, comparisons: Sequence[Comparison]) -> int:
        """Record all or nothing; durable on return. How many are new: repeating one changes nothing.

        NotFound: no such task. InvalidInput: the candidates are not the task's. Mismatch: another annotator
        holds the lease, or the task has another answer by now.
        """
        check_comparisons(comparisons)
        return self._run(lambda session: self._record(session, comparisons))

    def register(self, annotator: str, *, rule: str, digest: str) -> None:
        """Make a built-in annotator known. Mismatch if that name judged by another rule before."""
        check_annotator(annotator)

        def work(session: Session) -> None:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                session.add(
                    AnnotatorRow(name=annotator, rule=rule, rule_digest=digest, first_seen=self._clock())
                )
            elif row.rule_digest != digest:
                before = row.rule or "no rule"
                raise Mismatch(
                    f"annotator {annotator} has judged by {before} until now, and would by {rule}: "
                    "give it another name"
                )

        self._run(work)

    def page(
        self, *, campaign: str = "", after: Cursor | None = None, items: bool = False, limit: int = 500
    ) -> Page:
        """Comparisons by recorded time, at most `limit` of them after the cursor."""
        return self._run(lambda session: reports.page(session, campaign, after, items, limit))

    def games(self, subject: Subject, *, campaign: str = "") -> list[Game]:
        """Comparisons as games of candidates (named item_id/candidate_id) or of sources, by recorded time."""
        return self._run(lambda session: reports.games(session, subject, campaign))

    def statistics(self, *, campaign: str = "") -> Statistics:
        """Counts, all at one moment."""
        return self._run(lambda session: reports.statistics(session, campaign))

    def _upload(self, session: Session, items: Sequence[Item]) -> Uploaded:
        ids = [item.item_id for item in items]
        there = set(session.scalars(select(ItemRow.item_id).where(ItemRow.item_id.in_(ids))))
        new = {item.item_id: item for item in reversed(items) if item.item_id not in there}
        if new:
            fresh = list(new.values())
            tasks = [task_values(item, task) for item in fresh for task in plan_tasks(item, self._seed)]
            session.execute(insert(ItemRow), [item_values(item) for item in fresh])
            session.execute(
                insert(CandidateRow), [values for item in fresh for values in candidate_values(item)]
            )
            session.execute(insert(TaskRow), tasks)
        return Uploaded(len(new), len(items) - len(new))

    def _lease(self, session: Session, annotator: str, campaign: str, limit: int) -> list[Task]:
        now = self._clock()
        query = (
            select(TaskRow)
            .where(TaskRow.answered.is_(False))
            .order_by(TaskRow.order_key, TaskRow.task_id)
            .options(selectinload(TaskRow.item).selectinload(ItemRow.candidates))
            .with_for_update(skip_locked=True, of=TaskRow)  # PostgreSQL; SQLite has one writer anyway
        )
        if campaign:
            query = query.where(TaskRow.campaign == campaign)
        held = query.where(TaskRow.lease_holder == annotator, TaskRow.lease_until > now)
        rows = list(session.scalars(held.limit(limit)))
        if len(rows) < limit:
            rows += session.scalars(query.where(TaskRow.lease_until <= now).limit(limit - len(rows)))
        until = now + self._lease_seconds
        ids = [row.task_id for row in rows]
        session.execute(
            update(TaskRow)
            .where(TaskRow.task_id.in_(ids))
            .values(lease_holder=annotator, lease_until=until)
            .execution_options(synchronize_session=False)
        )
        return [
            Task(
                task_id=row.task_id,
                item=item_of(row.item),
                first_candidate_id=row.first_candidate_id,
                second_candidate_id=row.second_candidate_id,
                lease_until=until,
            )
            for row in rows
        ]

    def _record(self, session: Session, comparisons: Sequence[Comparison]) -> int:
        now = self._clock()
        ids = [comparison.task_id for comparison in comparisons]
        found = session.scalars(select(TaskRow).where(TaskRow.task_id.in_(ids)).with_for_update())
        tasks = {row.task_id: row for row in found}
        answered = session.scalars(select(ComparisonRow).where(ComparisonRow.task_id.in_(ids)))
        said = {row.task_id: comparison_of(row) for row in answered}
        values: list[dict[str, Any]] = []
        for comparison in comparisons:
            task = tasks.get(comparison.task_id)
            if task is None:
                raise NotFound(f"task {comparison.task_id} is not known")
            shown = _as_shown(comparison, task)
            if _is_new(shown, said.get(task.task_id), task, now):
                values.append(_comparison_values(shown, task, now))
                said[task.task_id] = shown
        if values:
            self._know_annotators(session, {str(value["annotator"]) for value in values}, now)
            session.execute(insert(ComparisonRow), values)
            done = update(TaskRow).where(TaskRow.task_id.in_([value["task_id"] for value in values]))
            session.execute(
                done.values(answered=True, lease_holder="", lease_until=0.0).execution_options(
                    synchronize_session=False
                )
            )
        return len(values)

    @staticmethod
    def _know_annotators(session: Session, names: set[str], now: float) -> None:
        known = set(session.scalars(select(AnnotatorRow.name).where(AnnotatorRow.name.in_(names))))
        session.add_all(AnnotatorRow(name=name, first_seen=now) for name in sorted(names - known))
        session.flush()


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
    return Comparison(
        task_id=task.task_id,
        item_id=task.item_id,
        annotator=comparison.annotator,
        first_candidate_id=sides[0],
        second_candidate_id=sides[1],
        choice=comparison.choice,
        confidence=comparison.confidence,
        comment=comparison.comment,
    )


def _is_new(comparison: Comparison, before: Comparison | None, task: TaskRow, now: float) -> bool:
    """False for a repetition. Mismatch where the task has another answer or someone else's lease."""
    if before is not None:
        same = before.annotator == comparison.annotator and before.preferred == comparison.preferred
        if same:
            return False
        raise Mismatch(f"task {task.task_id} has another answer already, by {before.annotator}")
    if task.lease_until > now and task.lease_holder != comparison.annotator:
        raise Mismatch(f"task {task.task_id} is leased to someone else by now")
    return True


def _comparison_values(comparison: Comparison, task: TaskRow, now: float) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "item_id": task.item_id,
        "campaign": task.campaign,
        "annotator": comparison.annotator,
        "first_candidate_id": comparison.first_candidate_id,
        "second_candidate_id": comparison.second_candidate_id,
        "choice": comparison.choice.value,
        "confidence": comparison.confidence,
        "comment": comparison.comment,
        "recorded_at": now,
    }


def _check_schema(session: Session) -> None:
    version = session.scalar(select(SchemaRow.version))
    if version is None:
        session.add(SchemaRow(version=SCHEMA))
    elif version != SCHEMA:
        raise ConfigError(
            f"the database has schema {version}, this program reads schema {SCHEMA}: use its own version"
        )
