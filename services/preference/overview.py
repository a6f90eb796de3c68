"""Owns the questions of the overview page: answers, campaigns, the browser's rows. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, String, case, cast, func, select
from sqlalchemy.orm import Session, selectinload

from services.preference.domain import Choice, Comparison, Item
from services.preference.insight import Answer
from services.preference.reports import within
from services.preference.tables import (
    CandidateRow,
    ComparisonRow,
    ItemRow,
    TaskRow,
    comparison_of,
    item_of,
)

_PAGE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which comparisons the browser shows. Empty: any. `disputed`: pairs about which annotators differ."""

    campaign: str = ""
    annotator: str = ""
    choice: str = ""
    text: str = ""
    kind: str = ""  # "gold", "plain"
    disputed: bool = False
    page: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """One page of comparisons, the newest first, and how many there are on all pages."""

    rows: Sequence[tuple[Comparison, Item]]
    total: int
    pages: int


def campaigns(session: Session) -> list[str]:
    """Names of all campaigns, the unnamed one too if it has items."""
    return list(session.scalars(select(ItemRow.campaign).distinct().order_by(ItemRow.campaign)))


def annotators(session: Session, campaign: str) -> list[str]:
    """Who answered anything."""
    query = within(select(ComparisonRow.annotator).distinct(), ComparisonRow.campaign, campaign)
    return list(session.scalars(query.order_by(ComparisonRow.annotator)))


def answered_by(session: Session, annotator: str, campaign: str) -> int:
    """How many tasks an annotator answered; a ranking counts once."""
    told = func.coalesce(func.nullif(ComparisonRow.ranking_id, ""), ComparisonRow.task_id)
    query = select(func.count(told.distinct())).where(ComparisonRow.annotator == annotator)
    return session.scalar(within(query, ComparisonRow.campaign, campaign)) or 0


def task_counts(session: Session, campaign: str) -> tuple[int, int]:
    """How many tasks wait for an answer, and how many there are."""
    query = select(TaskRow.answered, func.count()).where(TaskRow.gold.is_(False)).group_by(TaskRow.answered)
    counts = {
        bool(done): int(count) for done, count in session.execute(within(query, TaskRow.campaign, campaign))
    }
    return counts.get(False, 0), sum(counts.values())


def has_margins(session: Session, campaign: str) -> bool:
    """Whether anybody said how much better an answer is, gold aside."""
    query = within(
        select(ComparisonRow.margin).where(ComparisonRow.margin.is_not(None), ComparisonRow.gold.is_(False)),
        ComparisonRow.campaign,
        campaign,
    )
    return session.scalar(query.limit(1)) is not None


def labels_since(session: Session, campaign: str, since: float) -> int:
    """How many comparisons were recorded from then on, Unix seconds."""
    query = select(func.count()).where(ComparisonRow.recorded_at >= since)
    return session.scalar(within(query, ComparisonRow.campaign, campaign)) or 0


def answers(session: Session, campaign: str) -> list[Answer]:
    """All answers, gold ones with whether they are right."""
    query = select(
        ComparisonRow.task_id,
        ComparisonRow.annotator,
        ComparisonRow.choice,
        ComparisonRow.first_candidate_id,
        ComparisonRow.second_candidate_id,
        ComparisonRow.recorded_at,
        ComparisonRow.seconds,
        ComparisonRow.gold,
        ComparisonRow.item_id,
    )
    rows = session.execute(within(query, ComparisonRow.campaign, campaign)).all()
    orders = _gold_orders(session, {row[8] for row in rows if row[7]})
    found = []
    for task, annotator, said, first, second, recorded, seconds, gold, item in rows:
        choice = Choice(said)
        preferred = {Choice.FIRST: first, Choice.SECOND: second}.get(choice, f"({said})")
        right = None
        lesser = 1.0 if preferred == min(first, second) else 0.0
        value = {Choice.FIRST: lesser, Choice.SECOND: lesser, Choice.TIE: 0.5}.get(choice)
        if gold:
            order = orders[item]
            right = preferred == min(first, second, key=order.index)
        found.append(Answer(task, annotator, choice, preferred, recorded, seconds, right, value))
    return found


def _gold_orders(session: Session, items: set[str]) -> dict[str, list[str]]:
    if not items:
        return {}
    query = select(ItemRow.item_id, ItemRow.gold_order).where(
        func.length(cast(ItemRow.gold_order, String)) > 2
    )
    return dict(session.execute(query).all())


def browse(session: Session, wanted: Filter) -> Found:
    """The comparisons that a filter lets through, page by page."""
    conditions = _conditions(wanted)
    total = session.scalar(select(func.count()).select_from(ComparisonRow).where(*conditions)) or 0
    pages = max(1, -(-total // _PAGE))
    query = (
        select(ComparisonRow)
        .where(*conditions)
        .order_by(ComparisonRow.recorded_at.desc(), ComparisonRow.sequence.desc())
        .options(selectinload(ComparisonRow.item).selectinload(ItemRow.candidates))
        .limit(_PAGE)
        .offset((min(wanted.page, pages) - 1) * _PAGE)
    )
    rows = [(comparison_of(row), item_of(row.item)) for row in session.scalars(query)]
    return Found(rows, total, pages)


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for column, value in (
        (ComparisonRow.campaign, wanted.campaign),
        (ComparisonRow.annotator, wanted.annotator),
        (ComparisonRow.choice, wanted.choice),
    ):
        if value:
            conditions.append(column == value)
    if wanted.kind:
        conditions.append(ComparisonRow.gold.is_(wanted.kind == "gold"))
    if wanted.text:
        holds = select(CandidateRow.item_id).where(CandidateRow.text.icontains(wanted.text, autoescape=True))
        # As it stands within the JSON of the column.
        quoted = json.dumps(wanted.text)[1:-1]
        asked = select(ItemRow.item_id).where(cast(ItemRow.prompt, String).icontains(quoted, autoescape=True))
        said = ComparisonRow.comment.icontains(wanted.text, autoescape=True)
        conditions.append(ComparisonRow.item_id.in_(holds) | ComparisonRow.item_id.in_(asked) | said)
    if wanted.disputed:
        conditions.append(ComparisonRow.task_id.in_(_disputed()))
    return conditions


def _disputed() -> Select[str]:
    """Tasks about which at least two annotators made different choices."""
    preferred = case(
        (ComparisonRow.choice == Choice.FIRST.value, ComparisonRow.first_candidate_id),
        (ComparisonRow.choice == Choice.SECOND.value, ComparisonRow.second_candidate_id),
        else_="",
    )
    return (
        select(ComparisonRow.task_id)
        .where(ComparisonRow.choice.in_([Choice.FIRST.value, Choice.SECOND.value, Choice.TIE.value]))
        .group_by(ComparisonRow.task_id)
        .having(func.count(preferred.distinct()) > 1)
    )
