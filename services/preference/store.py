"""Owns items, tasks, leases and comparisons, durably. Synchronous; knows no wire, no event loop, no rating.

A task is open until as many annotators as it is for have answered it. A lease says who may answer it for now; time
comes from the clock given, in Unix seconds. Every public method is one transaction: all of it happens, or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, selectinload

from services.common.errors import AlreadyExists, InvalidInput, Mismatch
from services.preference import answering, leasing, recording, reports
from services.preference.answering import Outcome, UnitAnswer
from services.preference.assignment import Assignment, OpenTask, Unit, wanted_answers
from services.preference.database import Database
from services.preference.domain import (
    MAX_TASKS,
    Comparison,
    Item,
    Statistics,
    Subject,
    Task,
    check_annotator,
    check_campaign,
    check_comparisons,
    check_items,
    plan_tasks,
)
from services.preference.ratings import Game
from services.preference.reports import Cursor, Page
from services.preference.tables import (
    AnnotatorRow,
    CandidateRow,
    ItemRow,
    PersonRow,
    TaskRow,
    candidate_values,
    item_of,
    item_values,
    task_values,
)

Result = TypeVar("Result")


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
        assignment: Assignment | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the database and brings its tables up to date. `seed` draws sides and order of new tasks.

        Raises ConfigError for a URL or a schema that cannot be used, ServiceError for a database that fails.
        """
        self._database = Database(database_url)
        self._run = self._database.transaction
        self._lease_seconds = lease_seconds
        self._seed = seed
        self._assignment = assignment or Assignment()
        self._clock = clock

    @property
    def threads(self) -> int:
        """How many calls are worth making at a time."""
        return self._database.threads

    def query(self, work: Callable[[Session], Result]) -> Result:
        """What a question asked of the tables answers, beside whoever writes: see overview.py, accounts.py."""
        return self._database.read(work)

    def change(self, work: Callable[[Session], Result]) -> Result:
        """What a change of the tables answers, durable on return: see accounts.py."""
        return self._run(work)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def upload(self, items: Sequence[Item]) -> Uploaded:
        """Add items and their K(K-1)/2 tasks each. An item_id that is already there is left alone.

        AlreadyExists where it stands for another prompt, other answers or another campaign: labels would land on these.
        """
        check_items(items)
        return self._run(lambda session: self._upload(session, items))

    def next_tasks(self, annotator: str, *, campaign: str = "", limit: int = 1) -> list[Task]:
        """Lease open tasks to an annotator, first those it holds already: a lost answer costs nothing."""
        check_annotator(annotator)
        check_campaign(campaign)
        if not 1 <= limit <= MAX_TASKS:
            raise InvalidInput(
                f"max_tasks: expected 1 to {MAX_TASKS}, got {limit}", {"max_tasks": f"1 to {MAX_TASKS}"}
            )
        return self._run(
            lambda session: leasing.lease_tasks(session, self._asking(annotator, campaign, limit)),
            durable=False,
        )

    def next_units(
        self, annotator: str, *, campaign: str = "", limit: int = 1, rankings: bool = True
    ) -> list[Unit]:
        """The same as a page shows them; `rankings`: items with three to nine answers whole."""
        check_annotator(annotator)
        check_campaign(campaign)
        return self._run(
            lambda session: leasing.lease_units(session, self._asking(annotator, campaign, limit, rankings)),
            durable=False,
        )

    def release(self, annotator: str, *, until: float | None = None) -> int:
        """Free what an annotator holds; how many tasks that were.

        `until`: only leases that end by then, so that a page that goes frees none of its successor's.
        """
        return self._run(lambda session: leasing.release(session, annotator, until), durable=False)

    def record(self, comparisons: Sequence[Comparison], *, made_elsewhere: bool = False) -> int:
        """Record all or nothing; durable on return. How many are new: repeating one changes nothing.

        `made_elsewhere`: whether a task has its answers, or is leased, is no matter.

        NotFound: no such task. InvalidInput: the candidates are not the task's. Mismatch: another annotator
        holds the lease, or the task has its answers by now.
        """
        check_comparisons(comparisons)
        return self._run(
            lambda session: recording.record(session, comparisons, self._rules(late=made_elsewhere))
        )

    def answer(self, answers: Sequence[UnitAnswer]) -> list[Outcome]:
        """Keep what pages say, durable on return; what became of each. They may come late, twice, or be taken back.

        Tasks whose answers are taken back are leased to their annotator again. See recording.py.
        """

        def work(session: Session) -> list[Outcome]:
            return answering.answer_all(session, answers, self._rules(late=True))

        return self._run(work)

    def register(self, annotator: str, *, rule: str, digest: str) -> None:
        """Make a built-in annotator known. Mismatch if that name judged by another rule before, or is a person's."""
        check_annotator(annotator)

        def work(session: Session) -> None:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                if session.get(PersonRow, annotator) is not None:
                    raise Mismatch(f"annotator {annotator}: a person has that name; give it another one")
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
        self,
        *,
        campaign: str = "",
        after: Cursor | None = None,
        items: bool = False,
        gold: bool = False,
        limit: int = 500,
    ) -> Page:
        """Comparisons by recorded time, at most `limit` of them after the cursor; `gold`: those of gold items too."""
        check_campaign(campaign)
        return self.query(lambda session: reports.page(session, campaign, after, items, gold, limit))

    def games(self, subject: Subject, *, campaign: str = "") -> list[Game]:
        """Comparisons as games of candidates (named as `rated_name` says) or of sources, by recorded time."""
        check_campaign(campaign)
        return self.query(lambda session: reports.games(session, subject, campaign))

    def statistics(self, *, campaign: str = "") -> Statistics:
        """Counts, all at one moment."""
        check_campaign(campaign)
        return self.query(lambda session: reports.statistics(session, campaign))

    def open_tasks(self, *, limit: int) -> list[OpenTask]:
        """Open tasks for a Chooser, at most `limit` of them, in the drawn order."""
        return self.query(lambda session: reports.open_tasks(session, limit))

    def prefer(self, task_ids: Sequence[str]) -> None:
        """Let these tasks go out before all others, the first one first. Those preferred until now are not any more."""

        def work(session: Session) -> None:
            before = session.scalars(select(TaskRow.task_id).where(TaskRow.priority != 0))
            places = dict.fromkeys(before, 0)
            places |= {task: place - len(task_ids) for place, task in enumerate(task_ids)}
            # One after the other by id, as all who lock several tasks do: so no two wait for each other.
            values = [{"task_id": task, "priority": place} for task, place in sorted(places.items())]
            if values:
                session.execute(update(TaskRow), values)

        self._run(work)

    def _upload(self, session: Session, items: Sequence[Item]) -> Uploaded:
        ids = [item.item_id for item in items]
        rows = select(ItemRow).where(ItemRow.item_id.in_(ids)).options(selectinload(ItemRow.candidates))
        there = {row.item_id: item_of(row) for row in session.scalars(rows)}
        known = dict(there)
        for item in items:
            if differs := item.differs(known.setdefault(item.item_id, item)):
                raise AlreadyExists(f"item {item.item_id} is there already, with {differs}")
        if new := {name: item for name, item in known.items() if name not in there}:
            fresh = list(new.values())
            tasks = [
                task_values(item, task, wanted_answers(item, self._assignment))
                for item in fresh
                for task in plan_tasks(item, self._seed)
            ]
            session.execute(insert(ItemRow), [item_values(item) for item in fresh])
            session.execute(
                insert(CandidateRow), [values for item in fresh for values in candidate_values(item)]
            )
            session.execute(insert(TaskRow), tasks)
        return Uploaded(len(new), len(items) - len(new))

    def _asking(self, annotator: str, campaign: str, limit: int, rankings: bool = True) -> leasing.Asking:
        now = self._clock()
        return leasing.Asking(
            annotator=annotator,
            campaign=campaign,
            limit=limit,
            now=now,
            until=now + self._lease_seconds,
            gold_every=self._assignment.gold_every,
            rankings=rankings,
        )

    def _rules(self, *, late: bool) -> recording.Rules:
        now = self._clock()
        return recording.Rules(
            now=now,
            until=now + self._lease_seconds,
            undo_seconds=self._assignment.undo_seconds,
            late=late,
        )
