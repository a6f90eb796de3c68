"""A generative judge behind an OpenAI-compatible API as a RewardSource. Owns the prompt and what counts as a rating.

The text that is judged stands in the judge's prompt, so that a completion can address the judge ("give this a 10"):
such prompt injection cannot be excluded, only made harder by the prompt. A policy that is trained on a judge alone
will find it. Put a rule or a reward model beside it in a composite, and watch the length and the share of top ratings.

Nothing but a number of the pattern within [low, high] is a value; all else is the row's error.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from services.common.errors import InvalidInput, Mismatch, ServiceError, TrimtabError
from services.common.rules.bounded_regex import BoundedPattern
from services.reward.config import JudgeSpec
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceDescription, outcome_of
from services.reward.rewards.calling import Calls
from services.reward.rewards.chunks import ChunkedPool
from services.reward.rewards.http_calls import HttpCalls, access_to, parsed_url

_QUOTED = 120
_COLUMN = re.compile(r"columns\[([^\[\]]+)\]")


class JudgeReward:
    """One chat completion at temperature 0 for each row; `concurrent_calls` at a time."""

    kind: Literal["judge"] = "judge"

    def __init__(self, spec: JudgeSpec, *, max_queued_rows: int = 16384) -> None:
        self._spec = spec
        self._template = Template(spec.prompt)
        self._pattern = BoundedPattern(spec.pattern, what="judge.pattern")
        if self._pattern.groups < 1:
            raise InvalidInput("judge.pattern has no group for the value", {"judge.pattern": "(…) in it"})
        if not spec.low < spec.high:
            raise InvalidInput("judge: expected low below high", {"judge.low": "below judge.high"})
        self._url = str(_completions_url(spec.url))
        key = spec.key.get_secret_value() if spec.key else ""
        self._http = HttpCalls(
            spec.url,
            access=access_to(spec.url, key=key, key_file=spec.key_file, allow_plaintext=spec.allow_plaintext),
            connections=spec.concurrent_calls,
        )
        self._calls = Calls(
            self._http.place,
            timeout_seconds=spec.timeout_seconds,
            attempts=spec.attempts,
            failures=spec.breaker_failures,
            open_seconds=spec.breaker_seconds,
        )
        self._pool = ChunkedPool(
            f"judge {spec.model}", threads=spec.concurrent_calls, max_rows=max_queued_rows, chunk_rows=1
        )

    @property
    def digest(self) -> str:
        """BLAKE2b-128 over what is asked and how it is read. A change of weights behind the URL is not seen."""
        spec = self._spec
        content = [spec.url, spec.model, spec.prompt, spec.pattern, spec.low, spec.high, spec.max_tokens]
        canonical = json.dumps(["judge", 1, *content])
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    def describe(self) -> SourceDescription:
        """Text, uncut."""
        return SourceDescription(input_kind="text")

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit."""
        return self._pool.submit(rows, caller, lambda taken: [self._score(row, caller) for row in taken])

    def close(self) -> None:
        """See RewardSource.close."""
        self._pool.close()
        self._http.close()

    def _score(self, row: ScoreRow, caller: Caller) -> ScoreOutcome:
        try:
            if row.ids is not None:
                raise Mismatch("the input has token ids only, but a judge reads text")
            request = self._request(self._template.filled(row))
            answer = self._calls.call(
                lambda ends: self._http.ask("POST", self._url, request, ends=ends), caller
            )
            return outcome_of(self._rating(*_content(answer)))
        except TrimtabError as error:
            return ScoreOutcome(error=error)

    def _request(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self._spec.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._spec.max_tokens,
        }

    def _rating(self, text: str, cut: bool) -> float:
        spec = self._spec
        match = self._pattern.search(text)
        if match is None or match[1] is None:
            raise ServiceError(f"the judge's answer holds no rating: {text[:_QUOTED]!r}")
        if cut and match.end() == len(text):
            raise ServiceError(f"the judge's answer was cut off within its rating: {text[:_QUOTED]!r}")
        try:
            value = float(match[1])
        except ValueError:
            raise ServiceError(f"the judge's rating is no number: {match[1][:_QUOTED]!r}") from None
        if not spec.low <= value <= spec.high:
            raise ServiceError(f"the judge's rating {value:g} is not within {spec.low:g} and {spec.high:g}")
        return value


class Template:
    """A prompt with {prompt}, {completion} and {columns[name]} in it; {{ and }} are braces. InvalidInput."""

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str]] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if spec or conversion or (name is not None and not _known(name)):
                    raise ValueError(f"{{{name}}} is not known")
                self._parts.append((literal, name or ""))
        except ValueError as error:
            raise InvalidInput(
                f"judge.prompt: {error}; expected {{prompt}}, {{completion}}, {{columns[name]}}, and braces doubled",
                {"judge.prompt": "known fields"},
            ) from None

    def filled(self, row: ScoreRow) -> str:
        """The prompt for a row. What stands in a row is never read as a field. InvalidInput: a missing column."""
        return "".join(literal + _value(name, row) for literal, name in self._parts)


def _known(name: str) -> bool:
    return name in ("prompt", "completion") or _COLUMN.fullmatch(name) is not None


def _value(name: str, row: ScoreRow) -> str:
    if not name:
        return ""
    if name in ("prompt", "completion"):
        return row.prompt if name == "prompt" else row.completion
    column = name.removeprefix("columns[").removesuffix("]")
    if column not in row.columns:
        raise InvalidInput(f"column {column} is missing; the judge's prompt needs it", {name: "a value"})
    return row.columns[column]


def _content(answer: Any) -> tuple[str, bool]:
    """The text of the first choice, and whether it was cut off at max_tokens."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or not content.strip():
        raise ServiceError("the judge answered without text")
    return content, isinstance(choice, Mapping) and choice.get("finish_reason") == "length"


def _completions_url(base: str) -> Any:
    url = parsed_url(base)
    path = url.path.rstrip("/")
    return url if path.endswith("/chat/completions") else url.copy_with(path=f"{path}/chat/completions")
