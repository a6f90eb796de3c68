"""Owns the tables, and how domain objects become rows and come back. Knows no query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, String, Text
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

SCHEMA = 1  # raised with every change of the tables
_Id = String(MAX_ID_CHARACTERS)


class Table(DeclarativeBase):
    """Base of all tables."""


class SchemaRow(Table):
    """One row: the version of the tables."""

    __tablename__ = "schema"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ItemRow(Table):
    """A prompt; `prompt` is a list of {role, content}."""

    __tablename__ = "items"

    item_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    campaign: Mapped[str] = mapped_column(_Id, index=True)
    prompt_id: Mapped[str] = mapped_column(_Id)
    prompt: Mapped[list[dict[str, str]]] = mapped_column(JSON)
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
    """A pair to compare. `lease_until`: Unix seconds; not after now means free."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("tasks_open", "answered", "order_key"),
        Index("tasks_open_of_campaign", "campaign", "answered", "order_key"),
        Index("tasks_held", "lease_holder"),
    )

    task_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    item_id: Mapped[str] = mapped_column(_Id, ForeignKey("items.item_id"), index=True)
    campaign: Mapped[str] = mapped_column(_Id)
    first_candidate_id: Mapped[str] = mapped_column(_Id)
    second_candidate_id: Mapped[str] = mapped_column(_Id)
    order_key: Mapped[int] = mapped_column(BigInteger)
    answered: Mapped[bool] = mapped_column(default=False)
    lease_holder: Mapped[str] = mapped_column(_Id, default="")
    lease_until: Mapped[float] = mapped_column(default=0.0)
    item: Mapped[ItemRow] = relationship(lazy="raise")


class AnnotatorRow(Table):
    """Who compares. A built-in one has the rule it judges by and that rule's digest; a person has neither."""

    __tablename__ = "annotators"

    name: Mapped[str] = mapped_column(_Id, primary_key=True)
    rule: Mapped[str] = mapped_column(Text, default="")
    rule_digest: Mapped[str] = mapped_column(_Id, default="")
    first_seen: Mapped[float]


class ComparisonRow(Table):
    """One answer to one task, in the order shown to the annotator."""

    __tablename__ = "comparisons"
    __table_args__ = (
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
    task_id: Mapped[str] = mapped_column(_Id, ForeignKey("tasks.task_id"), unique=True)
    item_id: Mapped[str] = mapped_column(_Id, ForeignKey("items.item_id"), index=True)
    campaign: Mapped[str] = mapped_column(_Id)
    annotator: Mapped[str] = mapped_column(_Id, ForeignKey("annotators.name"), index=True)
    first_candidate_id: Mapped[str] = mapped_column(_Id)
    second_candidate_id: Mapped[str] = mapped_column(_Id)
    choice: Mapped[str] = mapped_column(String(8))
    confidence: Mapped[float | None]
    comment: Mapped[str] = mapped_column(Text)
    recorded_at: Mapped[float]
    item: Mapped[ItemRow] = relationship(lazy="raise", viewonly=True)


def item_values(item: Item) -> dict[str, Any]:
    """Columns of the item's own row."""
    prompt = [{"role": message.role, "content": message.content} for message in item.prompt]
    return {"item_id": item.item_id, "campaign": item.campaign, "prompt_id": item.prompt_id, "prompt": prompt}


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


def task_values(item: Item, task: PlannedTask) -> dict[str, Any]:
    """Columns of a new task, leased to nobody."""
    return {
        "task_id": task.task_id,
        "item_id": item.item_id,
        "campaign": item.campaign,
        "first_candidate_id": task.first_candidate_id,
        "second_candidate_id": task.second_candidate_id,
        "order_key": task.order,
        "answered": False,
        "lease_holder": "",
        "lease_until": 0.0,
    }


def item_of(row: ItemRow) -> Item:
    """The item of a row that was loaded with its candidates."""
    prompt = tuple(Message(role=message["role"], content=message["content"]) for message in row.prompt)
    return Item(
        item_id=row.item_id,
        prompt=prompt,
        candidates=tuple(_candidate_of(candidate) for candidate in row.candidates),
        campaign=row.campaign,
        prompt_id=row.prompt_id,
    )


def _candidate_of(row: CandidateRow) -> Candidate:
    version = None
    if row.version_epoch is not None and row.version_step is not None:
        version = Version(epoch=row.version_epoch, step=row.version_step, digest=row.version_digest or "")
    return Candidate(candidate_id=row.candidate_id, text=row.text, source=row.source, version=version)


def comparison_of(row: ComparisonRow) -> Comparison:
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
    )
