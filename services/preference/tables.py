"""Owns the tables of items and answers, and how domain objects become rows and come back. Knows no query.

A change here needs a migration beside it: migrations/versions/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Row,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy import Table as CoreTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from services.preference.domain import (
    MAX_ID_CHARACTERS,
    Candidate,
    Choice,
    Comparison,
    Item,
    Message,
    PlannedTask,
    Version,
)

_Id = String(MAX_ID_CHARACTERS)


class Table(DeclarativeBase):
    """Base of all tables."""


class ItemRow(Table):
    """A prompt; `prompt` is a list of {role, content}."""

    __tablename__ = "items"

    item_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    campaign: Mapped[str] = mapped_column(_Id, index=True)
    prompt_id: Mapped[str] = mapped_column(_Id)
    prompt: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    annotators: Mapped[int] = mapped_column(default=0)
    gold_order: Mapped[list[str]] = mapped_column(JSON, default=list)
    candidates: Mapped[list[CandidateRow]] = relationship(order_by="CandidateRow.position", lazy="raise")


class CandidateRow(Table):
    """An answer, in the order of upload. Without a version: all three version columns are null."""

    __tablename__ = "candidates"

    item_id: Mapped[str] = mapped_column(_Id, ForeignKey("items.item_id"), primary_key=True)
    candidate_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    position: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(_Id)
    version_epoch: Mapped[int | None] = mapped_column(BigInteger)
    version_step: Mapped[int | None] = mapped_column(BigInteger)
    version_digest: Mapped[str | None] = mapped_column(_Id)


class TaskRow(Table):
    """A pair to compare. `lease_until`: Unix seconds; not after now means free.

    `answered`: there are `wanted` answers, by as many annotators. A gold task is never answered: everybody gets it.
    Presented by `priority` (the chooser's; lower first), then by `order_key` (drawn).
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_open", "answered", "gold", "priority", "order_key"),
        Index("tasks_open_of_campaign", "campaign", "answered", "gold", "priority", "order_key"),
        Index("tasks_held", "lease_holder"),
    )

    task_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    item_id: Mapped[str] = mapped_column(_Id, ForeignKey("items.item_id"), index=True)
    campaign: Mapped[str] = mapped_column(_Id)
    first_candidate_id: Mapped[str] = mapped_column(_Id)
    second_candidate_id: Mapped[str] = mapped_column(_Id)
    order_key: Mapped[int] = mapped_column(BigInteger)
    priority: Mapped[int] = mapped_column(default=0)
    wanted: Mapped[int] = mapped_column(default=1)
    answers: Mapped[int] = mapped_column(default=0)
    answered: Mapped[bool] = mapped_column(default=False)
    gold: Mapped[bool] = mapped_column(default=False)
    lease_holder: Mapped[str] = mapped_column(_Id, default="")
    lease_until: Mapped[float] = mapped_column(default=0.0)


class AnnotatorRow(Table):
    """Who compares. A built-in one has the rule it judges by and that rule's digest; a person has neither."""

    __tablename__ = "annotators"

    name: Mapped[str] = mapped_column(_Id, primary_key=True)
    rule: Mapped[str] = mapped_column(Text, default="")
    rule_digest: Mapped[str] = mapped_column(_Id, default="")
    first_seen: Mapped[float]


class ComparisonRow(Table):
    """One annotator's answer to one task, in the order shown."""

    __tablename__ = "comparisons"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator", name="comparisons_once"),
        ForeignKeyConstraint(
            ["item_id", "first_candidate_id"], ["candidates.item_id", "candidates.candidate_id"]
        ),
        ForeignKeyConstraint(
            ["item_id", "second_candidate_id"], ["candidates.item_id", "candidates.candidate_id"]
        ),
        Index("comparisons_by_time", "recorded_at", "sequence"),
        Index("comparisons_of_campaign", "campaign", "recorded_at", "sequence"),
    )

    sequence: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(_Id, ForeignKey("tasks.task_id"))
    item_id: Mapped[str] = mapped_column(_Id, ForeignKey("items.item_id"), index=True)
    campaign: Mapped[str] = mapped_column(_Id)
    annotator: Mapped[str] = mapped_column(_Id, ForeignKey("annotators.name"), index=True)
    first_candidate_id: Mapped[str] = mapped_column(_Id)
    second_candidate_id: Mapped[str] = mapped_column(_Id)
    choice: Mapped[str] = mapped_column(String(8))
    confidence: Mapped[float | None]
    comment: Mapped[str] = mapped_column(Text)
    recorded_at: Mapped[float]
    ranking_id: Mapped[str] = mapped_column(_Id, default="")
    seconds: Mapped[float | None]
    margin: Mapped[float | None]
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    gold: Mapped[bool] = mapped_column(default=False)
    item: Mapped[ItemRow] = relationship(lazy="raise", viewonly=True)


class WithdrawnRow(Table):
    """An answer that its annotator took back or replaced: kept for the record, and so that a late copy is known."""

    __tablename__ = "withdrawn"
    __table_args__ = (Index("withdrawn_of_task", "task_id", "annotator"),)

    sequence: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(_Id, ForeignKey("tasks.task_id"))
    annotator: Mapped[str] = mapped_column(_Id)
    choice: Mapped[str] = mapped_column(String(8))
    preferred: Mapped[str] = mapped_column(_Id)
    recorded_at: Mapped[float]
    withdrawn_at: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)


class PersonRow(Table):
    """Someone with a personal link: its hash, none where it was revoked. An empty campaign means all."""

    __tablename__ = "people"

    name: Mapped[str] = mapped_column(_Id, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    campaign: Mapped[str] = mapped_column(_Id, default="")
    link_hash: Mapped[str | None] = mapped_column(String(80), unique=True)
    link_expires: Mapped[float | None]
    created_at: Mapped[float]


class SessionRow(Table):
    """A browser that signed in, by the hash of its cookie."""

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(_Id, ForeignKey("people.name"), index=True)
    expires: Mapped[float]


# For what every label asks: a row that is read and left is not worth a mapped object.
ITEMS, CANDIDATES, TASKS, COMPARISONS, ANNOTATORS, WITHDRAWN = (
    cast("CoreTable", mapped.__table__)
    for mapped in (ItemRow, CandidateRow, TaskRow, ComparisonRow, AnnotatorRow, WithdrawnRow)
)


def item_values(item: Item) -> dict[str, Any]:
    """Columns of the item's own row."""
    prompt = [{"role": message.role, "content": message.content} for message in item.prompt]
    return {
        "item_id": item.item_id,
        "campaign": item.campaign,
        "prompt_id": item.prompt_id,
        "prompt": prompt,
        "annotators": item.annotators,
        "gold_order": list(item.gold_order),
    }


def candidate_values(item: Item) -> list[dict[str, Any]]:
    """Columns of the rows of its candidates."""
    return [
        {
            "item_id": item.item_id,
            "candidate_id": candidate.candidate_id,
            "position": position,
            "text": candidate.text,
            "source": candidate.source,
            "version_epoch": candidate.version.epoch if candidate.version else None,
            "version_step": candidate.version.step if candidate.version else None,
            "version_digest": candidate.version.digest if candidate.version else None,
        }
        for position, candidate in enumerate(item.candidates)
    ]


def task_values(item: Item, task: PlannedTask, wanted: int) -> dict[str, Any]:
    """Columns of a new task, leased to nobody, that `wanted` annotators are to answer."""
    return {
        "task_id": task.task_id,
        "item_id": item.item_id,
        "campaign": item.campaign,
        "first_candidate_id": task.first_candidate_id,
        "second_candidate_id": task.second_candidate_id,
        "order_key": task.order,
        "priority": 0,
        "wanted": wanted,
        "answers": 0,
        "answered": False,
        "gold": bool(item.gold_order),
        "lease_holder": "",
        "lease_until": 0.0,
    }


def item_of(row: ItemRow) -> Item:
    """The item of a row that was loaded with its candidates."""
    return item_with(row, row.candidates)


def item_with(
    row: ItemRow | Row[*tuple[Any, ...]], candidates: Sequence[CandidateRow | Row[*tuple[Any, ...]]]
) -> Item:
    """The item of a row and of those of its candidates, in their order."""
    prompt = tuple(Message(role=message["role"], content=message["content"]) for message in row.prompt)
    return Item(
        item_id=row.item_id,
        prompt=prompt,
        candidates=tuple(_candidate_of(candidate) for candidate in candidates),
        campaign=row.campaign,
        prompt_id=row.prompt_id,
        annotators=row.annotators,
        gold_order=tuple(row.gold_order),
    )


def _candidate_of(row: CandidateRow | Row[*tuple[Any, ...]]) -> Candidate:
    version = None
    if row.version_epoch is not None and row.version_step is not None:
        version = Version(epoch=row.version_epoch, step=row.version_step, digest=row.version_digest or "")
    return Candidate(candidate_id=row.candidate_id, text=row.text, source=row.source, version=version)


def comparison_of(row: ComparisonRow | Row[*tuple[Any, ...]]) -> Comparison:
    """The comparison of a row."""
    return Comparison(
        task_id=row.task_id,
        item_id=row.item_id,
        annotator=row.annotator,
        first_candidate_id=row.first_candidate_id,
        second_candidate_id=row.second_candidate_id,
        choice=Choice(row.choice),
        confidence=row.confidence,
        comment=row.comment,
        recorded_at=row.recorded_at,
        ranking_id=row.ranking_id,
        seconds=row.seconds,
        margin=row.margin,
        revision=row.revision,
        gold=row.gold,
    )
