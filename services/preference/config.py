"""The preference service's configuration: what all services have, a database, annotators, ratings."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from services.common.errors import TrimtabError
from services.common.rules import make_rule
from services.common.spec.base import Spec
from services.common.spec.service import ServiceSpec
from services.preference.assignment import Assignment
from services.preference.database import parse_url
from services.preference.domain import MAX_ANNOTATORS, MAX_ID_CHARACTERS, MAX_TASKS
from services.preference.ratings import RatingMethod


class AnnotatorSpec(Spec):
    """A built-in annotator, which prefers the candidate that a rule scores higher."""

    name: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS, description="Who recorded the comparison.")
    rule: str = Field(min_length=1, description="sentiment, length:target=40, regex:pattern=…, …")
    margin: float = Field(
        0.0, ge=0, description="A difference of scores up to this is a tie; the rule's unit."
    )
    campaign: str = Field("", max_length=MAX_ID_CHARACTERS, description="Only this one; empty: all.")
    batch_tasks: int = Field(64, ge=1, le=MAX_TASKS, description="Tasks leased and recorded at once.")
    poll_seconds: float = Field(5.0, gt=0, description="Looks for freed tasks this often; new ones wake it.")

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        try:
            make_rule(rule)
        except TrimtabError as error:
            raise ValueError(str(error)) from None
        return rule


class RatingSpec(Spec):
    """How comparisons become ratings."""

    kind: Literal["elo", "bradley-terry", "crowd"] = Field(
        "elo", description="crowd: Bradley-Terry with annotators weighted by reliability."
    )
    k: float = Field(32.0, gt=0, description="Elo points at stake per comparison.")
    start: float = Field(1000.0, description="Elo points of the average.")
    permutations: int = Field(16, ge=1, le=1000, description="Orders that Elo is averaged over.")
    bootstrap_samples: int = Field(200, ge=20, le=10_000, description="Resamples for the 95 % interval.")
    prior_deviation: float = Field(
        800.0, ge=0, description="Of the normal prior on Bradley-Terry strengths, Elo points; 0: no prior."
    )
    seed: int = Field(1, ge=0, lt=2**31, description="Of permutations and resamples.")

    def method(self) -> RatingMethod:
        """The same for the pure functions."""
        return RatingMethod(
            kind=self.kind,
            k=self.k,
            start=self.start,
            permutations=self.permutations,
            samples=self.bootstrap_samples,
            prior_deviation=self.prior_deviation or math.inf,
            seed=self.seed,
        )


class AssignmentSpec(Spec):
    """[assignment]: who gets which tasks, and in which order."""

    order: Literal["random", "active"] = Field(
        "random", description="active: first the pairs that the ratings so far are least sure of."
    )
    refresh_seconds: float = Field(10.0, gt=0, description="The active order is renewed at most this often.")
    consider_tasks: int = Field(
        2000, ge=1, le=100_000, description="Open tasks that the active order chooses from."
    )
    overlap_annotators: int = Field(2, ge=1, le=MAX_ANNOTATORS, description="Of items that several answer.")
    overlap_share: float = Field(0.0, ge=0, le=1, description="Share of items that several answer.")
    gold_every: int = Field(0, ge=0, description="One of so many tasks has a known answer; 0: none.")


class WebSpec(Spec):
    """[web]: the pages, on server.http_port."""

    public_url: str = Field(
        "",
        pattern=r"^$|^https?://[^/\s]+$",
        description="As browsers see it, behind an ingress: https://label.example.org.",
    )
    rankings: bool = Field(
        True, description="Items with three to nine answers are ranked; false: pair by pair."
    )
    markdown: bool = Field(True, description="Show texts as sanitised Markdown; false: as they are.")
    instructions: str = Field("", max_length=20_000, description="What annotators should go by; Markdown.")
    tasks_ahead: int = Field(5, ge=1, le=50, description="Tasks a page holds, to go on without a connection.")
    session_hours: float = Field(72.0, gt=0, description="Then the link must be opened again.")
    undo_seconds: float = Field(3600.0, ge=0, description="An answer can be taken back for so long.")
    requests_per_minute: int = Field(600, ge=10, description="Of one person.")
    sign_ins_per_minute: int = Field(30, ge=1, description="That fail, from one address.")


class PreferenceConfig(ServiceSpec):
    """[server] [log] [assignment] [web] [rating] [[annotators]], the database and the lease of a task."""

    database_url: SecretStr = Field(
        SecretStr("sqlite:///preference.db"),
        description="SQLAlchemy URL: sqlite:///file, postgresql+psycopg://…",
    )
    lease_seconds: float = Field(600.0, gt=0, description="A task returns to the others after this long.")
    order_seed: int = Field(1, ge=0, lt=2**31, description="Draws order and sides of the tasks of new items.")
    annotators: tuple[AnnotatorSpec, ...] = ()
    rating: RatingSpec = RatingSpec()
    assignment: AssignmentSpec = AssignmentSpec()
    web: WebSpec = WebSpec()

    def assigning(self) -> Assignment:
        """The same for the store."""
        return Assignment(
            overlap_annotators=self.assignment.overlap_annotators,
            overlap_share=self.assignment.overlap_share,
            gold_every=self.assignment.gold_every,
            undo_seconds=self.web.undo_seconds,
            seed=self.order_seed,
        )

    @field_validator("database_url")
    @classmethod
    def _database(cls, url: SecretStr) -> SecretStr:
        try:
            parse_url(url.get_secret_value())
        except TrimtabError as error:
            raise ValueError(str(error)) from None
        return url

    @model_validator(mode="after")
    def _fits(self) -> PreferenceConfig:
        names = [annotator.name for annotator in self.annotators]
        if len(set(names)) != len(names):
            raise ValueError("expected annotators with names that differ")
        if self.queue is not None:
            raise ValueError("expected no [queue]: the preference service works on no stage")
        return self
