"""The port of everything that scores. Knows no model, no rule, no wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.common.errors import Corrupted, TrimtabError
from services.models.facts import ModelFacts

InputKind = Literal["text", "messages", "token_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One answer to be scored: the conversation before it as (role, content) pairs, and the answer."""

    messages: tuple[tuple[str, str], ...]
    completion: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The conversation as plain text."""
        return "\n".join(content for _, content in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutcome:
    """A value, or why there is none; never both, never NaN."""

    value: float | None = None
    error: TrimtabError | None = None
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """What a source tells about itself. score = gain * head + bias; lengths in tokens, 0: no limit."""

    facts: ModelFacts | None = None
    input_kind: InputKind = "text"
    truncates: Literal["left", "right", "never"] = "never"
    max_tokens: int = 0
    gain: float = 1.0
    bias: float = 0.0


class RewardSource(Protocol):
    """A reward model or a rule. Called by one thread at a time."""

    @property
    def kind(self) -> Literal["model", "rule"]:
        """What it is."""
        ...

    @property
    def digest(self) -> str:
        """Hex. Equal digests score equally."""
        ...

    def describe(self) -> SourceDescription:
        """What ListModels answers."""
        ...

    def score(self, rows: Sequence[ScoreRow]) -> list[ScoreOutcome]:
        """One outcome for each row, in order. A row that cannot be scored has an error; nothing is raised."""
        ...


def outcome_of(value: float, *, truncated_tokens: int = 0) -> ScoreOutcome:
    """The outcome for a number; a number that is not finite is an error."""
    if not math.isfinite(value):
        return ScoreOutcome(error=Corrupted(f"the score is {value}, not a finite number"))
    return ScoreOutcome(value=value, truncated_tokens=truncated_tokens)
