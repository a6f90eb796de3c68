"""trimtab.reward.v1 of another service, by the client that everybody uses. Knows neither retries nor breakers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from services.common.errors import (
    InvalidInput,
    Mismatch,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unavailable,
)
from services.reward.config import RemoteSpec
from services.reward.rewards.base import (
    InputKind,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    TokenIds,
    outcome_of,
)
from services.reward.rewards.calling import TryAgain, answered_error
from services.reward.rewards.remote import RemoteModel
from trimtab.clients import errors as clients
from trimtab.clients.reward import RewardClient
from trimtab.clients.tensors import ids_tensor
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

_INPUT: dict[int, InputKind] = {
    wire.INPUT_KIND_TEXT: "text",
    wire.INPUT_KIND_MESSAGES: "messages",
    wire.INPUT_KIND_TOKEN_IDS: "token_ids",
}
_TRUNCATION: dict[int, Literal["left", "right"]] = {
    wire.TRUNCATION_SIDE_LEFT: "left",
    wire.TRUNCATION_SIDE_RIGHT: "right",
}


class GrpcTransport:
    """See remote.Transport."""

    def __init__(self, spec: RemoteSpec) -> None:
        scheme, _, target = spec.url.partition("://")
        self._url = spec.url
        try:
            self._client = RewardClient(
                target.rstrip("/"),
                attempts=1,
                # Never the environment's key, which is for this service: "" sends none.
                key=spec.key.get_secret_value() if spec.key else "",
                key_file=spec.key_file,
                ca_file=spec.ca_file,
                certificate_file=spec.certificate_file,
                private_key_file=spec.private_key_file,
                tls=scheme == "grpcs",
                allow_plaintext=spec.allow_plaintext,
            )
        except (ValueError, OSError) as error:
            raise InvalidInput(
                f"remote {spec.url}: {error}", {"remote": "a key and files that fit"}
            ) from None

    def models(self, ends: float) -> list[RemoteModel]:
        """What ListModels names."""
        try:
            listed = self._client.list_models(timeout_seconds=_left(ends))
        except clients.TrimtabClientError as error:
            raise self._raised(error) from None
        return [
            RemoteModel(
                name=info.name,
                digest=info.model.model_digest,
                about=SourceDescription(
                    input_kind=_INPUT.get(info.input, "text"),
                    truncates=_TRUNCATION.get(info.truncation, "never"),
                    max_tokens=info.max_tokens,
                    gain=info.gain,
                    bias=info.bias,
                ),
            )
            for info in listed
        ]

    def score(
        self, rows: Sequence[ScoreRow], model: str, fingerprint: str, ends: float
    ) -> list[ScoreOutcome]:
        """See remote.Transport."""
        inputs = [_encoded(row) for row in rows]
        try:
            scores = self._client.score(
                inputs, model=model, tokenizer_fingerprint=fingerprint, timeout_seconds=_left(ends)
            )
        except clients.TrimtabClientError as error:
            raise self._raised(error) from None
        return [_outcome(score) for score in scores]

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _raised(self, error: clients.TrimtabClientError) -> Exception:
        message = f"{self._url}: {error.message}"
        if isinstance(error, clients.OverloadedError):
            pause = error.retry_seconds or 0.0
            return TryAgain(Overloaded(message, pause), pause)
        # A service that shuts down cancels what it still works on; nobody here has.
        if isinstance(error, clients.UnavailableError | clients.CancelledError):
            return TryAgain(Unavailable(message))
        return _final(error, message)


def _final(error: clients.TrimtabClientError, message: str) -> TrimtabError:
    if isinstance(error, clients.InvalidArgumentError):
        return InvalidInput(message, error.violations)
    if isinstance(error, clients.NotFoundError):
        return NotFound(message)
    if isinstance(error, clients.FailedPreconditionError):
        return Mismatch(message)
    if isinstance(error, clients.ResourceExhaustedError):
        return TooLarge(message)
    if isinstance(error, clients.UnauthenticatedError | clients.PermissionDeniedError):
        return ServiceError(message)
    return answered_error(error.code.name, message)


def _left(ends: float) -> float:
    return max(ends - time.monotonic(), 0.001)


def _encoded(row: ScoreRow) -> wire.ScoreInput:
    columns = dict(row.columns)
    if isinstance(row.ids, TokenIds):
        return wire.ScoreInput(
            prompt_ids=ids_tensor(row.ids.prompt),
            completion_ids=ids_tensor(row.ids.completion),
            columns=columns,
        )
    messages = [common.ChatMessage(role=role, content=content) for role, content in row.messages]
    answer = common.ChatMessage(role="assistant", content=row.completion)
    return wire.ScoreInput(messages=[*messages, answer], columns=columns)


def _outcome(score: common.Score) -> ScoreOutcome:
    if not score.HasField("value"):
        error = answered_error(score.error.code, score.error.message or "the remote service gave no reason")
        whole = ScoreOutcome(error=error)
    else:
        whole = outcome_of(score.value)
    return replace(
        whole,
        truncated_tokens=score.truncated_tokens,
        components=dict(score.components),
        steps=tuple(score.steps),
        digest=score.model_digest,
    )
