"""POST /v1/score of another service, in the shape of our own HTTP API. Knows neither retries nor breakers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from services.common.errors import NotFound, ServiceError
from services.reward.config import RemoteSpec
from services.reward.rewards.base import InputKind, ScoreOutcome, ScoreRow, SourceDescription, outcome_of
from services.reward.rewards.calling import answered_error
from services.reward.rewards.http_calls import HttpCalls, access_to, parsed_url, trust
from services.reward.rewards.remote import RemoteModel

_SCORE_PATH = "/v1/score"
_Side = Literal["left", "right", "never"]


class HttpTransport:
    """See remote.Transport. A URL without a path means /v1/score; models are listed beside a path that ends so."""

    def __init__(self, spec: RemoteSpec) -> None:
        url = parsed_url(spec.url)
        path = url.path.rstrip("/") or _SCORE_PATH
        self._url = str(url.copy_with(path=path))
        beside = path.removesuffix("/score") + "/models"
        self._models_url = str(url.copy_with(path=beside)) if path.endswith(_SCORE_PATH) else ""
        key = spec.key.get_secret_value() if spec.key else ""
        self._http = HttpCalls(
            spec.url,
            access=access_to(spec.url, key=key, key_file=spec.key_file, allow_plaintext=spec.allow_plaintext),
            connections=spec.concurrent_calls,
            trust=trust(spec.ca_file, spec.certificate_file, spec.private_key_file),
        )

    def models(self, ends: float) -> list[RemoteModel] | None:
        """What GET /v1/models names; None from a server that has no such page, or another one."""
        if not self._models_url:
            return None
        try:
            answer = self._http.ask("GET", self._models_url, None, ends=ends)
        except NotFound:
            return None
        listed = answer.get("models") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            return None
        return [_model(entry) for entry in listed if isinstance(entry, dict)]

    def score(
        self, rows: Sequence[ScoreRow], model: str, fingerprint: str, ends: float
    ) -> list[ScoreOutcome]:
        """See remote.Transport."""
        body: dict[str, Any] = {"model": model, "inputs": [_encoded(row) for row in rows]}
        if fingerprint:
            body["tokenizer_fingerprint"] = fingerprint
        answer = self._http.ask("POST", self._url, body, ends=ends)
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise ServiceError(f"{self._http.place} answered without scores")
        return [_outcome(score) for score in scores]

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


def _encoded(row: ScoreRow) -> dict[str, Any]:
    columns = {"columns": dict(row.columns)} if row.columns else {}
    if row.ids is not None:
        return {"prompt_ids": list(row.ids.prompt), "completion_ids": list(row.ids.completion), **columns}
    if len(row.messages) == 1 and row.messages[0][0] == "user" and row.messages[0][1]:
        return {"prompt": row.messages[0][1], "completion": row.completion, **columns}
    messages = [{"role": role, "content": content} for role, content in row.messages]
    return {"messages": [*messages, {"role": "assistant", "content": row.completion}], **columns}


def _model(entry: Mapping[str, Any]) -> RemoteModel:
    kinds: tuple[InputKind, ...] = get_args(InputKind)
    sides: tuple[_Side, ...] = get_args(_Side)
    return RemoteModel(
        name=str(entry.get("name", "")),
        digest=str(entry.get("digest", "")),
        about=SourceDescription(
            input_kind=next((kind for kind in kinds if kind == entry.get("input")), "text"),
            truncates=next((side for side in sides if side == entry.get("truncates")), "never"),
            max_tokens=_count(entry.get("max_tokens")),
            gain=_number(entry.get("gain", 1.0)),
            bias=_number(entry.get("bias", 0.0)),
        ),
    )


def _outcome(score: Any) -> ScoreOutcome:
    """A row's answer; one that cannot be read is an error."""
    entry = score if isinstance(score, dict) else {}
    return replace(
        _value_or_error(entry),
        truncated_tokens=_count(entry.get("truncated_tokens")),
        components={str(name): _number(value) for name, value in _mapping(entry.get("components")).items()},
        steps=tuple(map(_number, _sequence(entry.get("steps")))),
        digest=str(entry.get("model_digest") or ""),
    )


def _value_or_error(entry: Mapping[str, Any]) -> ScoreOutcome:
    error = entry.get("error")
    if isinstance(error, dict):
        return ScoreOutcome(
            error=answered_error(str(error.get("code", "")), str(error.get("message", "no reason was given")))
        )
    if error:
        return ScoreOutcome(error=ServiceError(str(error)[:300]))
    value = entry.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ScoreOutcome(
            error=ServiceError("the remote service answered neither value nor error for this row")
        )
    return outcome_of(_number(value))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    """As it came; NaN for what is none, which makes the row an error: never a number in its place."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _count(value: Any) -> int:
    """For information alone: 0 where none is told."""
    number = _number(value)
    return int(number) if math.isfinite(number) else 0
