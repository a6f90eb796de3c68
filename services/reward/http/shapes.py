"""What every request shape has in common: the port `Shape`, strict parsing, and the texts that rows are made of.

Knows no server. A shape says how its body is written, which rows it holds, and how scores are written back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import Corrupted, InvalidInput, ServiceError, TooLarge, TrimtabError, UserError
from services.reward.answering import Decoded
from services.reward.rewards.base import ScoreOutcome, ScoreRow
from services.reward.scoring import Scored

Body = TypeVar("Body", bound=BaseModel)
# The OpenAPI page writes the service's own limit of rows where it finds this one, which no configuration exceeds: it
# ends the reading of a hostile list before the list is in memory.
MAX_ROWS = 65536
ROWS = Field(max_length=MAX_ROWS)
# Of every list that may be long: the first wrong element ends its reading. An error takes about a kilobyte, so one for
# each of two million would take gigabytes, and seconds of the event loop.
FIRST_ERROR = Field(fail_fast=True)
_MAX_VIOLATIONS = 16
# A JSON value takes up to 150 bytes once it is parsed, whatever it took as text: 64 MiB of "{}," would become 3 GiB.
MAX_VALUES = 1 << 21


class Strict(BaseModel):
    """A body of ours: a wrong type or an unknown field is a mistake, not to be guessed around."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Tolerant(BaseModel):
    """A body of somebody else's: fields that say nothing about scoring are left aside."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What shapes know beside the body.

    model: the name to score by, before what a body says. rendered: whether a text has a chat template around it
    already; None: as the shape's trainer does it. whole: the source reads a prompt and its answer as one text, so where
    they part does not matter.
    """

    model: str = ""
    rendered: bool | None = None
    key: str = ""
    tokenizer_fingerprint: str = ""
    whole: bool = False


class Shape(Protocol[Body]):
    """One way of asking for scores."""

    @property
    def body(self) -> type[Body]:
        """What a request holds."""
        ...

    @property
    def takes_nothing(self) -> bool:
        """Whether a request without rows is answered without scores; otherwise it is a mistake."""
        ...

    def model(self, body: Body, /) -> str:
        """The model that the body names; empty: the only one that the caller may use."""
        ...

    def fingerprint(self, body: Body, /) -> str:
        """The tokenizer that the body names; empty: none."""
        ...

    def rows(self, body: Body, query: Query, /) -> Sequence[Decoded]:
        """What is to be scored; an input that cannot be read has an error in its place. InvalidInput."""
        ...

    def answer(self, body: Body, query: Query, scored: Scored, /) -> Any:
        """What is written back, made of what JSON knows. A TrimtabError where this shape cannot say it."""
        ...


class ForeignShape(Generic[Body]):
    """What the shapes of others lack: a tokenizer's name, and a place for a row's error."""

    takes_nothing = False

    def fingerprint(self, _body: Body) -> str:
        """None of these shapes names one."""
        return ""

    def model(self, _body: Body) -> str:
        """None in the body, unless the shape says otherwise."""
        return ""


def parse(kind: type[Body], raw: bytes) -> Body:
    """The body, checked. InvalidInput says which fields are wrong; what it quotes of the body is bounded.

    TooLarge for more than MAX_VALUES values, before anything is made of them.
    """
    _check_values(raw)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    violations: dict[str, str] = {}
    for problem in problems[:_MAX_VIOLATIONS]:
        violations.setdefault(_path(problem["loc"]), problem["msg"])
    field, message = next(iter(violations.items()))
    if problems[0]["type"] == "json_invalid":
        raise InvalidInput(f"the body is no JSON: {message.removeprefix('Invalid JSON: ')}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise InvalidInput(f"{field}: {message}{more}", violations)


def text_row(
    prompt: str, completion: str, columns: Mapping[str, str] | None = None, *, rendered: bool = False
) -> ScoreRow:
    """A prompt and its answer as text; `rendered`: a chat template has been put around them already.

    InvalidInput where there is no text at all.
    """
    if not prompt and not completion:
        raise InvalidInput("the input is empty")
    messages = (("user", prompt),) if prompt else ()
    return ScoreRow(messages=messages, completion=completion, columns=columns or {}, rendered=rendered)


def lone_row(text: str, rendered: bool | None, *, special_tokens: bool) -> ScoreRow:
    """A text that is the whole input, with its chat template around it unless `rendered` is False.

    special_tokens: the model adds its tokenizer's; under a template of the model's own there are some already.
    """
    row = text_row("", text, rendered=rendered is not False)
    return replace(row, special_tokens=special_tokens and row.rendered)


def decoded(make: Callable[[], ScoreRow]) -> Decoded:
    """The row, or why it cannot be read: its neighbours can."""
    try:
        return make()
    except UserError as error:
        return error


def conversation_row(
    messages: Sequence[tuple[str, str]], columns: Mapping[str, str] | None = None
) -> ScoreRow:
    """A conversation with its answer last. InvalidInput where the last message is not the assistant's."""
    *before, (role, answer) = messages
    if role != "assistant":
        raise InvalidInput(f"the last message is of role {role[:32] or '(none)'}, expected assistant")
    return ScoreRow(messages=tuple(before), completion=answer, columns=columns or {})


def label_columns(label: object) -> dict[str, str]:
    """A trainer's label as the column `label`, for rules that compare; one that is no text as JSON."""
    if label is None:
        return {}
    return {"label": label if isinstance(label, str) else json.dumps(label)}


def values_of(scored: Scored, field: str) -> list[float]:
    """All values, [rows], for shapes that have no place for a row's error: the first error is raised.

    Never null, 0 or NaN in a value's place; a trainer would take it for a reward.
    """
    sound = [checked(outcome) for outcome in scored.outcomes]
    wrong = [index for index, outcome in enumerate(sound) if outcome.value is None]
    if wrong:
        error = sound[wrong[0]].error
        raise _with_place(error, f"{field}[{wrong[0]}]", len(wrong))
    return [outcome.value for outcome in sound if outcome.value is not None]


def checked(outcome: ScoreOutcome) -> ScoreOutcome:
    """The outcome; an error instead where a number of it is not finite, since JSON has no such numbers."""
    if outcome.value is None:
        return outcome if outcome.error is not None else ScoreOutcome(error=Corrupted("there is no score"))
    if all(map(math.isfinite, (outcome.value, *outcome.components.values(), *outcome.steps))):
        return outcome
    return ScoreOutcome(error=Corrupted("the score is not a finite number"))


def _check_values(raw: bytes) -> None:
    # Commas within texts count only where there are suspiciously many in all.
    if raw.count(b",") > MAX_VALUES and _commas_between_texts(raw) > MAX_VALUES:
        raise TooLarge(f"the body has more than {MAX_VALUES} values; send it in several requests")


def _commas_between_texts(raw: bytes) -> int:
    """Of JSON up to its first mistake, in time that grows with its length alone: the event loop waits for it."""
    unescaped = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    within = np.logical_xor.accumulate(unescaped == ord('"'))
    return int(np.count_nonzero((unescaped == ord(",")) & ~within))


def _with_place(error: TrimtabError | None, place: str, count: int) -> TrimtabError:
    more = f" (and {count - 1} more without a score)" if count > 1 else ""
    message = str(error)
    # Rows that could not be read name their place already.
    text = f"{message}{more}" if message.startswith("inputs[") else f"{place}: {message}{more}"
    if isinstance(error, UserError | ServiceError):
        located = type(error)(text)
        vars(located).update(vars(error))
        return located
    return ServiceError(text)


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path[:160] or "body"
