"""Owns which rows an annotator gets: held ones first, a gold one if it is due, then free ones. Inside a transaction.

A task is leased to one annotator at a time, also where several are to answer it: they come one after the other.
Gold tasks are leased to nobody: everybody gets each of them once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Select, exists, func, or_, select, update
from sqlalchemy.orm import Session, selectinload

from services.preference.assignment import Unit, gold_due, is_ranked
from services.preference.domain import Task, content_id
from services.preference.ranking import Pair
from services.preference.tables import ComparisonRow, ItemRow, TaskRow, WithdrawnRow, item_of

_MOST_HELD = 1000
_ROUNDS = 16  # of looking for more where others are taking what was found at the same moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who asks for how many, now and until when (Unix seconds). An empty campaign means all."""

    annotator: str
    campaign: str
    limit: int
    now: float
    until: float
    gold_every: int = 0
    rankings: bool = True

    def ranks(self, row: TaskRow) -> bool:
        """Whether the row's item is to be shown whole."""
        return self.rankings and is_ranked(item_of(row.item))


def lease_tasks(session: Session, asking: Asking) -> list[Task]:
    """Single pairs."""
    rows = list(session.scalars(_locked(_held(asking).limit(asking.limit))))
    if len(rows) < asking.limit:
        rows += _gold_rows(session, asking, 1)
    if len(rows) < asking.limit:
        rows += session.scalars(_locked(_free(asking).limit(asking.limit - len(rows))))
    return _take(session, asking, rows)


def lease_units(session: Session, asking: Asking) -> list[Unit]:
    """What a page shows: items with few enough answers whole, as rankings; others as pairs."""
    by_item = _held(asking).order_by(None).order_by(TaskRow.item_id).limit(_MOST_HELD)
    held = list(session.scalars(_locked(by_item)))
    groups = [
        part
        for _, of_item in groupby(held, key=lambda row: row.item_id)
        for part in _parts(asking, list(of_item))
    ]
    groups.sort(key=lambda rows: min((row.priority, row.order_key) for row in rows))
    groups = groups[: asking.limit]
    if len(groups) < asking.limit:
        groups += _parts(asking, _gold_rows(session, asking, None))
    groups += _free_groups(session, asking, asking.limit - len(groups))
    tasks = {task.task_id: task for task in _take(session, asking, [row for rows in groups for row in rows])}
    taken_back = _taken_back(session, asking.annotator, tasks.keys())
    return [
        Unit(
            "ranking" if len(rows) > 1 else "pair",
            tuple(tasks[row.task_id] for row in rows),
            max(taken_back.get(row.task_id, 0) for row in rows),
        )
        for rows in groups
    ]


def release(session: Session, annotator: str, until: float | None) -> int:
    """Free what an annotator holds, `until`: of leases that end by then; how many tasks that were."""
    held = select(TaskRow.task_id).where(TaskRow.lease_holder == annotator, TaskRow.answered.is_(False))
    if until is not None:
        held = held.where(TaskRow.lease_until <= until)
    # In order, as all who lock several tasks: so no two wait for each other.
    ids = session.scalars(held.order_by(TaskRow.task_id).with_for_update()).all()
    freed = update(TaskRow).where(TaskRow.task_id.in_(ids)).values(lease_holder="", lease_until=0.0)
    session.execute(freed.execution_options(synchronize_session=False))
    return len(ids)


def pairs_beside(session: Session, task_ids: set[str]) -> dict[str, Pair]:
    """These tasks and all others of their items, by id."""
    items = select(TaskRow.item_id).where(TaskRow.task_id.in_(task_ids))
    query = select(
        TaskRow.task_id,
        TaskRow.item_id,
        TaskRow.first_candidate_id,
        TaskRow.second_candidate_id,
        TaskRow.campaign,
    ).where(TaskRow.item_id.in_(items))
    return {row[0]: Pair(*row) for row in session.execute(query)}


def _taken_back(session: Session, annotator: str, task_ids: Collection[str]) -> dict[str, int]:
    """The highest revision with which the annotator took each task's answer back; nothing of other tasks."""
    query = (
        select(WithdrawnRow.task_id, func.max(WithdrawnRow.revision))
        .where(WithdrawnRow.task_id.in_(task_ids), WithdrawnRow.annotator == annotator)
        .group_by(WithdrawnRow.task_id)
    )
    return {task: int(revision) for task, revision in session.execute(query)}


def _as_task(row: TaskRow, until: float) -> Task:
    return Task(
        task_id=row.task_id,
        item=item_of(row.item),
        first_candidate_id=row.first_candidate_id,
        second_candidate_id=row.second_candidate_id,
        lease_until=until,
    )


def _tasks() -> Select[TaskRow]:
    return select(TaskRow).options(selectinload(TaskRow.item).selectinload(ItemRow.candidates))


def _unanswered(asking: Asking) -> Select[TaskRow]:
    """Tasks that this annotator has not answered, in the order of presentation."""
    mine = exists().where(
        ComparisonRow.task_id == TaskRow.task_id, ComparisonRow.annotator == asking.annotator
    )
    query = _tasks().where(~mine).order_by(TaskRow.priority, TaskRow.order_key, TaskRow.task_id)
    return query.where(TaskRow.campaign == asking.campaign) if asking.campaign else query


def _open(asking: Asking) -> Select[TaskRow]:
    return _unanswered(asking).where(TaskRow.answered.is_(False), TaskRow.gold.is_(False))


def _held(asking: Asking) -> Select[TaskRow]:
    return _open(asking).where(TaskRow.lease_holder == asking.annotator, TaskRow.lease_until > asking.now)


def _free(asking: Asking) -> Select[TaskRow]:
    return _open(asking).where(TaskRow.lease_until <= asking.now)


def _locked(query: Select[TaskRow]) -> Select[TaskRow]:
    """The tasks of a query that nobody is taking now, kept from others. PostgreSQL; SQLite has one writer anyway."""
    return query.with_for_update(skip_locked=True, of=TaskRow)


def _of_locked_items(query: Select[TaskRow]) -> Select[TaskRow]:
    """The same by items: their tasks, as they were a moment ago, wait to be locked."""
    return query.join(TaskRow.item).with_for_update(skip_locked=True, key_share=True, of=ItemRow)


def _gold_rows(session: Session, asking: Asking, limit: int | None) -> Sequence[TaskRow]:
    """A gold task that is due, or, without a limit, all tasks of one gold item. Another one for another annotator."""
    if not asking.gold_every:
        return []
    answers, golds = _answers_of(session, asking.annotator)
    if not gold_due(answers, golds, asking.gold_every):
        return []
    rows = session.scalars(_unanswered(asking).where(TaskRow.gold.is_(True)).limit(_MOST_HELD)).all()
    if not rows:
        return []
    first = min(rows, key=lambda row: content_id(asking.annotator, row.item_id, row.task_id))
    of_item = [row for row in rows if row.item_id == first.item_id]
    return of_item[:limit]


def _answers_of(session: Session, annotator: str) -> tuple[int, int]:
    """How many times an annotator answered (a ranking is one answer), and how often about gold."""
    told = func.coalesce(func.nullif(ComparisonRow.ranking_id, ""), ComparisonRow.task_id)
    query = (
        select(ComparisonRow.gold, func.count(told.distinct()))
        .where(ComparisonRow.annotator == annotator)
        .group_by(ComparisonRow.gold)
    )
    counts = {bool(gold): int(count) for gold, count in session.execute(query)}
    return sum(counts.values()), counts.get(True, 0)


def _parts(asking: Asking, rows: Sequence[TaskRow]) -> Iterable[list[TaskRow]]:
    """The rows of one item: together if they are all its pairs and it can be ranked, else one by one."""
    if rows and asking.ranks(rows[0]) and len(rows) == _pairs(rows[0]):
        return [list(rows)]
    return [[row] for row in rows]


def _free_groups(session: Session, asking: Asking, limit: int) -> list[list[TaskRow]]:
    """At most `limit` of what is free, in the order of presentation: items to be ranked whole, else pairs.

    The items are locked before their pairs: two who each locked some pairs of one item would keep each other from
    ranking it, and both would get a pair of it.
    """
    groups: list[list[TaskRow]] = []
    seen: set[str] = set()
    settled: set[str] = set()
    locked_first = _of_locked_items if asking.rankings and not _one_writer(session) else _locked
    for _ in range(_ROUNDS):
        if len(groups) >= limit:
            break
        more = _free(asking).where(TaskRow.task_id.not_in(seen), TaskRow.item_id.not_in(settled))
        found = session.scalars(locked_first(more.limit(limit - len(groups)))).all()
        if not found:
            break
        locked = _lock(session, asking, found)
        for row in found:
            if row.item_id not in settled:
                group = _group(session, asking, row, locked)
                groups += [group] if group else []
                settled |= {row.item_id} if asking.ranks(row) and len(group) != 1 else set()
        seen |= {row.task_id for row in found}
    return groups


def _one_writer(session: Session) -> bool:
    """Whether nobody else can be taking anything meanwhile."""
    return session.get_bind().dialect.name == "sqlite"


def _lock(session: Session, asking: Asking, found: Sequence[TaskRow]) -> list[TaskRow]:
    """Of rows whose items are locked: those that are free still, and the other free ones of items for ranking."""
    items = {row.item_id for row in found if asking.ranks(row)}
    alone = [row for row in found if row.item_id not in items]
    together = TaskRow.item_id.in_(items)
    if _one_writer(session):  # what was found is as it was
        return alone + (list(session.scalars(_free(asking).where(together))) if items else [])
    pairs = TaskRow.task_id.in_({row.task_id for row in alone})
    return list(session.scalars(_locked(_free(asking).where(or_(together, pairs) if items else pairs))))


def _group(session: Session, asking: Asking, row: TaskRow, locked: Sequence[TaskRow]) -> list[TaskRow]:
    """All tasks of a row's item if it can be ranked and they are all free, else the row alone.

    Nothing where somebody else has it by now, or is taking pairs of an item that is whole so far.
    """
    if asking.ranks(row):
        of_item = [one for one in locked if one.item_id == row.item_id]
        if len(of_item) == _pairs(row):
            return of_item
        free = _free(asking).where(TaskRow.item_id == row.item_id)
        if len(session.scalars(free).all()) == _pairs(row):
            return []
    return [one for one in locked if one.task_id == row.task_id]


def _pairs(row: TaskRow) -> int:
    """How many pairs its item has."""
    candidates = len(row.item.candidates)
    return candidates * (candidates - 1) // 2


def _take(session: Session, asking: Asking, rows: Sequence[TaskRow]) -> list[Task]:
    ids = [row.task_id for row in rows if not row.gold]
    session.execute(
        update(TaskRow)
        .where(TaskRow.task_id.in_(ids))
        .values(lease_holder=asking.annotator, lease_until=asking.until)
        .execution_options(synchronize_session=False)
    )
    return [_as_task(row, asking.until) for row in rows]
