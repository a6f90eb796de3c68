"""The port of everything that scores. Knows no model, no rule, no wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from services.common.errors import Corrupted, TrimtabError, Unavailable, UserError
from services.common.tracing import NO_TRACE, Trace
from services.models.facts import ModelFacts

InputKind = Literal["text", "messages", "token_ids"]
SourceKind = Literal["model", "process", "rule", "function", "composite", "running", "remote", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """A row as a tokenizer's ids; `fingerprint` says whose."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One answer to be scored: the conversation before it as (role, content) pairs, and the answer.

    A row that came as token ids has them in `ids`, and no text. `rendered`: somebody has put a chat template around
    it already, so a model reads prompt and completion as they stand, one after the other. `special_tokens`: it is one
    text, around which a model puts its tokenizer's special tokens (see ScoreText). `completion_ids`: the
    policy's own tokens of the completion, where the row has text and came through a stage.
    """

    messages: tuple[tuple[str, str], ...]
    completion: str
    columns: Mapping[str, str] = field(default_factory=dict)
    ids: TokenIds | None = None
    rendered: bool = False
    special_tokens: bool = False
    completion_ids: Sequence[int] | None = field(default=None, compare=False)

    @property
    def prompt(self) -> str:
        """The conversation as plain text."""
        return "\n".join(content for _, content in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """For whom a batch is scored.

    client: whose turn it is when several wait; fair between these names. deadline: of time.monotonic; what
    is not begun by then is dropped. trace: told of the phases.
    """

    client: str = ""
    deadline: float | None = None
    trace: Trace = NO_TRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutcome:
    """A value, or why there is none; never both, never NaN.

    components: the unweighted value of each part of a composite. steps: one value for each step of the
    completion, from a process reward model. digest: of what scored this row, where that is not the source's
    own of the moment it was asked; empty: it is.
    """

    value: float | None = None
    error: TrimtabError | None = None
    truncated_tokens: int = 0
    components: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()
    digest: str = ""


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
    """Anything that scores. Safe to call from several threads."""

    @property
    def kind(self) -> SourceKind:
        """What it is."""
        ...

    @property
    def digest(self) -> str:
        """Hex. Equal digests score equally."""
        ...

    def describe(self) -> SourceDescription:
        """What ListModels answers."""
        ...

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """One outcome for each row, in order. A row that cannot be scored has an error in its place.

        Returns at once. Overloaded is raised where there is no room, SourceClosed after close(). Expired ends
        the future where the caller's deadline passed first. Cancelling the future drops what has not begun.
        """
        ...

    def close(self) -> None:
        """Finish what was submitted, then let go of threads, processes and connections. May block."""
        ...


@runtime_checkable
class ComposedSource(Protocol):
    """A source made of others by name. The table makes it anew whenever one of them changes."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of its components."""
        ...

    def with_components(self, components: Mapping[str, RewardSource]) -> RewardSource:
        """The same composition of these sources."""
        ...


class NotScored(UserError):
    """A function that has nothing to say of a row: TRL's None. A composite may leave it out of the sum."""

    status = "FAILED_PRECONDITION"


class SourceClosed(Unavailable):
    """This source has been taken away between being looked up and being asked."""


def outcome_of(value: float, *, truncated_tokens: int = 0) -> ScoreOutcome:
    """The outcome for a number; a number that is not finite is an error."""
    if not math.isfinite(value):
        return ScoreOutcome(error=Corrupted(f"the score is {value}, not a finite number"))
    return ScoreOutcome(value=value, truncated_tokens=truncated_tokens)
