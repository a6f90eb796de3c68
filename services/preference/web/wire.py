"""Owns the JSON between the page and us: what a page sends, checked; what it gets. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import InvalidInput
from services.preference.answering import Outcome, UnitAnswer
from services.preference.assignment import Unit
from services.preference.domain import MAX_ID_CHARACTERS, MAX_SECONDS, Choice
from services.preference.web.markdown import as_text, to_html

Body = TypeVar("Body", bound=BaseModel)
MAX_ANSWERS = 50
_MAX_COMMENT = 4000


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SignIn(_Sent):
    """The token of a personal link."""

    token: str = Field(min_length=1, max_length=200)


class Wanted(_Sent):
    """How many tasks the page wants to hold."""

    limit: int = Field(ge=1, le=50)


class Released(_Sent):
    """A page goes: what it leased ended at the latest at `until`, Unix seconds."""

    until: float


class SentAnswer(_Sent):
    """See UnitAnswer."""

    unit: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    kind: Literal["pair", "ranking"]
    revision: int = Field(ge=1, lt=2**53)
    ranks: list[int] = Field(default_factory=list, max_length=9)
    choice: Literal["skip", "flag"] | None = None
    withdrawn: bool = False
    confidence: float | None = Field(None, ge=0, le=1)
    comment: str = Field("", max_length=_MAX_COMMENT)
    seconds: float | None = Field(None, ge=0, le=MAX_SECONDS)

    def of(self, annotator: str, campaign: str) -> UnitAnswer:
        """The same for the domain, by whom and within which campaign; empty: all."""
        return UnitAnswer(
            annotator=annotator,
            campaign=campaign,
            unit_id=self.unit,
            kind=self.kind,
            revision=self.revision,
            ranks=tuple(self.ranks),
            choice=None if self.choice is None else Choice(self.choice),
            withdrawn=self.withdrawn,
            confidence=self.confidence,
            comment=self.comment,
            seconds=self.seconds,
        )


class SentAnswers(_Sent):
    """Answers in the order in which they were given."""

    answers: list[SentAnswer] = Field(min_length=1, max_length=MAX_ANSWERS)


def parse(kind: type[Body], body: bytes) -> Body:
    """The body as `kind`. InvalidInput, naming fields."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = {
            ".".join(map(str, problem["loc"])) or "body": problem["msg"]
            for problem in error.errors(include_url=False, include_input=False)
        }
        field, expected = next(iter(found.items()))
        raise InvalidInput(f"{field}: {expected}", found) from None


def unit_json(unit: Unit, annotator: str, *, markdown: bool) -> dict[str, Any]:
    """A unit as the page shows it: no candidate's id or source, so that nothing tells what made an answer."""
    item = unit.item
    render = to_html if markdown else as_text
    texts = [item.candidate(candidate).text for candidate in unit.shown(annotator)]
    return {
        "unit": unit.unit_id,
        "kind": unit.kind,
        "prompt": [{"role": turn.role, "html": render(turn.content)} for turn in item.prompt],
        "answers": [{"html": render(text), "text": text} for text in texts],
        "until": unit.lease_until,
        "revision": unit.revision,
    }


def outcomes_json(answers: Sequence[SentAnswer], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What became of each answer."""
    return [
        {
            "unit": sent.unit,
            "revision": sent.revision,
            "new": outcome.new,
            "refused": outcome.refused,
            "overtaken": outcome.overtaken,
        }
        for sent, outcome in zip(answers, outcomes, strict=True)
    ]
