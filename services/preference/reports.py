"""Owns the questions asked of the tables: comparisons by time, games, counts. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session, aliased, selectinload

from services.preference.assignment import OpenTask
from services.preference.domain import Choice, Comparison, Item, Statistics, Subject, rated_name
from services.preference.ratings import Game
from services.preference.tables import CandidateRow, ComparisonRow, ItemRow, TaskRow, comparison_of, item_of

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])
_SCORES = {Choice.FIRST: 1.0, Choice.TIE: 0.5, Choice.SECOND: 0.0}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of comparisons ended."""

    recorded_at: float
    sequence: int


@dataclass(frozen=True, slots=True)
class Page:
    """Comparisons by recorded time, with their items if asked for. `end` is None after the last page."""

    rows: list[tuple[Comparison, Item | None]]
    end: Cursor | None


def page(session: Session, campaign: str, after: Cursor | None, items: bool, gold: bool, limit: int) -> Page:
    """At most `limit` comparisons after the cursor."""
    query = select(ComparisonRow).order_by(ComparisonRow.recorded_at, ComparisonRow.sequence).limit(limit)
    query = within(query, ComparisonRow.campaign, campaign)
    if not gold:
        query = query.where(ComparisonRow.gold.is_(False))
    if after is not None:
        position = tuple_(ComparisonRow.recorded_at, ComparisonRow.sequence)
        query = query.where(position > (after.recorded_at, after.sequence))
    if items:
        query = query.options(selectinload(ComparisonRow.item).selectinload(ItemRow.candidates))
    rows = session.scalars(query).all()
    found = [(comparison_of(row), item_of(row.item) if items else None) for row in rows]
    full = len(rows) == limit
    return Page(found, Cursor(rows[-1].recorded_at, rows[-1].sequence) if full else None)


def games(session: Session, subject: Subject, campaign: str) -> list[Game]:
    """Comparisons as games, by recorded time; skipped, flagged and gold ones are none.

    A candidate is named as `rated_name` says, a source by itself; pairs without a source are left out.
    """
    first, second = aliased(CandidateRow), aliased(CandidateRow)
    query = (
        select(ComparisonRow.item_id, ComparisonRow.choice)
        .add_columns(first.candidate_id, first.source, second.candidate_id, second.source)
        .add_columns(ComparisonRow.annotator)
        .join(first, first.item_id == ComparisonRow.item_id)
        .join(second, second.item_id == ComparisonRow.item_id)
        .where(first.candidate_id == ComparisonRow.first_candidate_id)
        .where(second.candidate_id == ComparisonRow.second_candidate_id)
        .where(ComparisonRow.choice.in_([choice.value for choice in _SCORES]))
        .where(ComparisonRow.gold.is_(False))
        .order_by(ComparisonRow.recorded_at, ComparisonRow.sequence)
    )
    rows = session.execute(within(query, ComparisonRow.campaign, campaign)).all()
    return [
        Game(one_source, two_source, _SCORES[Choice(said)], who)
        if subject is Subject.SOURCE
        else Game(rated_name(item, one), rated_name(item, two), _SCORES[Choice(said)], who)
        for item, said, one, one_source, two, two_source, who in rows
        if subject is Subject.CANDIDATE or (one_source and two_source)
    ]


def open_tasks(session: Session, limit: int) -> list[OpenTask]:
    """Tasks that wait for an answer, whether or not somebody holds them, in the drawn order."""
    query = (
        select(TaskRow.task_id, TaskRow.item_id, TaskRow.first_candidate_id, TaskRow.second_candidate_id)
        .where(TaskRow.answered.is_(False), TaskRow.gold.is_(False))
        .order_by(TaskRow.order_key, TaskRow.task_id)
        .limit(limit)
    )
    return [
        OpenTask(task, rated_name(item, first), rated_name(item, second))
        for task, item, first, second in session.execute(query)
    ]


def statistics(session: Session, campaign: str) -> Statistics:
    """Counts of items, open tasks and comparisons; gold tasks and what was said of them are left out."""
    items = within(select(func.count()).select_from(ItemRow), ItemRow.campaign, campaign)
    tasks = within(
        select(func.count()).where(TaskRow.answered.is_(False), TaskRow.gold.is_(False)),
        TaskRow.campaign,
        campaign,
    )
    groups = within(
        select(ComparisonRow.annotator, ComparisonRow.choice, func.count()).where(
            ComparisonRow.gold.is_(False)
        ),
        ComparisonRow.campaign,
        campaign,
    ).group_by(ComparisonRow.annotator, ComparisonRow.choice)
    by_annotator: dict[str, int] = {}
    by_choice: dict[Choice, int] = {}
    for annotator, said, count in session.execute(groups).all():
        by_annotator[annotator] = by_annotator.get(annotator, 0) + count
        by_choice[Choice(said)] = by_choice.get(Choice(said), 0) + count
    return Statistics(
        items=session.scalar(items) or 0,
        tasks_open=session.scalar(tasks) or 0,
        comparisons=sum(by_choice.values()),
        ties=by_choice.get(Choice.TIE, 0),
        skipped=by_choice.get(Choice.SKIP, 0) + by_choice.get(Choice.FLAG, 0),
        comparisons_by_annotator=by_annotator,
    )


def within(query: Query, column: Any, campaign: str) -> Query:
    """The query for one campaign; for all where it is empty."""
    return query.where(column == campaign) if campaign else query
