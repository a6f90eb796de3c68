"""Owns which rows an annotator gets: held ones first, a gold one if it is due, then free ones. Inside a transaction.

A task is leased to one annotator at a time, also where several are to answer it: they come one after the other.
Gold tasks are leased to nobody: everybody gets each of them once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import BindParameter, Select, bindparam, func, select, update
from sqlalchemy.orm import Session

from services.preference.assignment import Unit, gold_due, is_ranked_count
from services.preference.domain import Item, Task, content_id
from services.preference.lease_queries import QUERIES, LeaseQueries
from services.preference.tables import CANDIDATES, COMPARISONS, ITEMS, TASKS, WITHDRAWN, item_with

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

    def ranks(self, row: Leasable) -> bool:
        """Whether the row's item is to be shown whole."""
        return self.rankings and is_ranked_count(row.candidates)

    @property
    def queries(self) -> LeaseQueries:
        """Within the campaign, or within all."""
        return QUERIES[bool(self.campaign)]

    def rows(self, session: Session, query: Select[*tuple[Any, ...]], **more: object) -> list[Leasable]:
        """What a query finds for whoever asks."""
        known = {"annotator": self.annotator, "campaign": self.campaign, "now": self.now}
        return [Leasable(*row) for row in session.execute(query, known | more)]


@dataclass(frozen=True, slots=True)
class Leasable:
    """A task as far as leasing needs it, as lease_queries.COLUMNS; `candidates`: how many its item has."""

    task_id: str
    item_id: str
    first_candidate_id: str
    second_candidate_id: str
    priority: int
    order_key: int
    gold: bool
    candidates: int

    @property
    def pairs(self) -> int:
        """How many its item has."""
        return self.candidates * (self.candidates - 1) // 2


def lease_tasks(session: Session, asking: Asking) -> list[Task]:
    """Single pairs."""
    rows = asking.rows(session, asking.queries.held, most=asking.limit)
    if len(rows) < asking.limit:
        rows += _gold_rows(session, asking, 1)
    if len(rows) < asking.limit:
        rows += _free_rows(session, asking, asking.queries.free, asking.limit - len(rows))
    return _take(session, asking, rows)


def lease_units(session: Session, asking: Asking) -> list[Unit]:
    """What a page shows: items with few enough answers whole, as rankings; others as pairs."""
    held = asking.rows(session, asking.queries.held_by_item, most=_MOST_HELD)
    groups = [
        part
        for _, of_item in groupby(held, key=lambda row: row.item_id)
        for part in _parts(asking, list(of_item))
    ]
    groups.sort(key=lambda rows: min((row.priority, row.order_key) for row in rows))
    groups = groups[: asking.limit]
    if len(groups) < asking.limit:
        groups += list(_parts(asking, _gold_rows(session, asking, None)))[:1]
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
    held = select(TASKS.c.task_id).where(TASKS.c.lease_holder == annotator, TASKS.c.answered.is_(False))
    if until is not None:
        held = held.where(TASKS.c.lease_until <= until)
    # In order, as all who lock several tasks: so no two wait for each other.
    ids = session.scalars(held.order_by(TASKS.c.task_id).with_for_update()).all()
    session.execute(_LEASE, {"ids": ids, "holder": "", "until": 0.0})
    return len(ids)


def _taken_back(session: Session, annotator: str, task_ids: Collection[str]) -> dict[str, int]:
    """The highest revision with which the annotator took each task's answer back; nothing of other tasks."""
    found = session.execute(_TAKEN_BACK, {"annotator": annotator, "ids": list(task_ids)})
    return {task: int(revision) for task, revision in found}


def _free_rows(
    session: Session,
    asking: Asking,
    query: Select[*tuple[Any, ...]],
    most: int,
    seen: Collection[str] = (),
    settled: Collection[str] = (),
) -> list[Leasable]:
    """At most so many, but the tasks `seen` and those of the items `settled`."""
    return asking.rows(session, query, most=most, seen=list(seen), settled=list(settled))


def _gold_rows(session: Session, asking: Asking, limit: int | None) -> Sequence[Leasable]:
    """A gold task that is due, or, without a limit, all tasks of one gold item. Another one for another annotator."""
    if not asking.gold_every:
        return []
    answers, golds = _answers_of(session, asking.annotator)
    if not gold_due(answers, golds, asking.gold_every):
        return []
    rows = asking.rows(session, asking.queries.gold, most=_MOST_HELD)
    if not rows:
        return []
    first = min(rows, key=lambda row: content_id(asking.annotator, row.item_id, row.task_id))
    of_item = [row for row in rows if row.item_id == first.item_id]
    return of_item[:limit]


def _answers_of(session: Session, annotator: str) -> tuple[int, int]:
    """How many times an annotator answered (a ranking is one answer), and how often about gold."""
    counts = {
        bool(gold): int(count) for gold, count in session.execute(_ANSWERS_OF, {"annotator": annotator})
    }
    return sum(counts.values()), counts.get(True, 0)


def _parts(asking: Asking, rows: Sequence[Leasable]) -> Iterable[list[Leasable]]:
    """The rows of one item: together if they are all its pairs and it can be ranked, else one by one."""
    if rows and asking.ranks(rows[0]) and len(rows) == rows[0].pairs:
        return [list(rows)]
    return [[row] for row in rows]


def _free_groups(session: Session, asking: Asking, limit: int) -> list[list[Leasable]]:
    """At most `limit` of what is free, in the order of presentation: items to be ranked whole, else pairs.

    The items are locked before their pairs: two who each locked some pairs of one item would keep each other from
    ranking it, and both would get a pair of it.
    """
    groups: list[list[Leasable]] = []
    seen: set[str] = set()
    settled: set[str] = set()
    queries = asking.queries
    query = queries.free_by_item if asking.rankings and not _one_writer(session) else queries.free
    for _ in range(_ROUNDS):
        if len(groups) >= limit:
            break
        found = _free_rows(session, asking, query, limit - len(groups), seen, settled)
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


def _lock(session: Session, asking: Asking, found: Sequence[Leasable]) -> list[Leasable]:
    """Of rows whose items are locked: those that are free still, and the other free ones of items for ranking."""
    items = list({row.item_id for row in found if asking.ranks(row)})
    alone = [row for row in found if row.item_id not in items]
    if _one_writer(session):  # what was found is as it was
        return alone + (asking.rows(session, asking.queries.free_of_items, items=items) if items else [])
    ids = [row.task_id for row in alone]
    if items:
        return asking.rows(session, asking.queries.free_of_items_or_among, items=items, ids=ids)
    return asking.rows(session, asking.queries.free_among, ids=ids)


def _group(session: Session, asking: Asking, row: Leasable, locked: Sequence[Leasable]) -> list[Leasable]:
    """All tasks of a row's item if it can be ranked and they are all free, else the row alone.

    Nothing where somebody else has it by now, or is taking pairs of an item that is whole so far.
    """
    if asking.ranks(row):
        of_item = [one for one in locked if one.item_id == row.item_id]
        if len(of_item) == row.pairs:
            return of_item
        if len(asking.rows(session, asking.queries.free_of_items, items=[row.item_id])) == row.pairs:
            return []
    return [one for one in locked if one.task_id == row.task_id]


def _take(session: Session, asking: Asking, rows: Sequence[Leasable]) -> list[Task]:
    ids = [row.task_id for row in rows if not row.gold]
    session.execute(_LEASE, {"ids": ids, "holder": asking.annotator, "until": asking.until})
    items = _items(session, {row.item_id for row in rows})
    return [
        Task(
            task_id=row.task_id,
            item=items[row.item_id],
            first_candidate_id=row.first_candidate_id,
            second_candidate_id=row.second_candidate_id,
            lease_until=asking.until,
        )
        for row in rows
    ]


def _items(session: Session, item_ids: Collection[str]) -> dict[str, Item]:
    """By id, with their candidates."""
    ids = {"ids": list(item_ids)}
    candidates: dict[str, list[Any]] = {}
    for row in session.execute(_CANDIDATES, ids):
        candidates.setdefault(row.item_id, []).append(row)
    return {row.item_id: item_with(row, candidates[row.item_id]) for row in session.execute(_ITEMS, ids)}


_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_ITEMS = select(ITEMS).where(ITEMS.c.item_id.in_(_IDS))
_CANDIDATES = select(CANDIDATES).where(CANDIDATES.c.item_id.in_(_IDS)).order_by(CANDIDATES.c.position)
_LEASE = (
    update(TASKS)
    .where(TASKS.c.task_id.in_(_IDS))
    .values(lease_holder=bindparam("holder"), lease_until=bindparam("until"))
)
_TAKEN_BACK = (
    select(WITHDRAWN.c.task_id, func.max(WITHDRAWN.c.revision))
    .where(WITHDRAWN.c.task_id.in_(_IDS), WITHDRAWN.c.annotator == bindparam("annotator"))
    .group_by(WITHDRAWN.c.task_id)
)
_TOLD = func.coalesce(func.nullif(COMPARISONS.c.ranking_id, ""), COMPARISONS.c.task_id)
_ANSWERS_OF = (
    select(COMPARISONS.c.gold, func.count(_TOLD.distinct()))
    .where(COMPARISONS.c.annotator == bindparam("annotator"))
    .group_by(COMPARISONS.c.gold)
)
