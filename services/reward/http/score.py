"""POST /v1/score: our own shape, the same content as trimtab.reward.v1 Score. Every row has a value or an error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field

from services.common.errors import InvalidInput, Mismatch
from services.reward.answering import Decoded
from services.reward.http.shapes import (
    FIRST_ERROR,
    ROWS,
    Query,
    Strict,
    checked,
    conversation_row,
    decoded,
    text_row,
)
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds
from services.reward.scoring import Scored

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
MAX_MESSAGES = 4096
MAX_IDS = 1 << 20
MAX_COLUMNS = 256


class ChatMessage(Strict):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=64)
    content: str


class ScoreInput(Strict):
    """One answer to be scored: messages with the answer last, or prompt and completion, or their token ids."""

    prompt: str = ""
    completion: str = ""
    messages: Annotated[list[ChatMessage], FIRST_ERROR] = Field([], max_length=MAX_MESSAGES)
    prompt_ids: Annotated[list[TokenId], FIRST_ERROR] = Field([], max_length=MAX_IDS)
    completion_ids: Annotated[list[TokenId], FIRST_ERROR] | None = Field(None, max_length=MAX_IDS)
    columns: dict[str, str] = Field({}, max_length=MAX_COLUMNS, description="Other columns, for rules.")


class ScoreRequest(Strict):
    """What to score, and by which model."""

    model: str = Field("", max_length=63, description="Empty: the only one that you may use.")
    inputs: Annotated[list[ScoreInput], ROWS, FIRST_ERROR] = Field(min_length=1)
    tokenizer_fingerprint: str = Field("", max_length=128, description="Needed with token ids.")


class RowError(BaseModel):
    """Why a row has no score."""

    code: str = Field(description="gRPC's name for the status.")
    message: str


class _Named(BaseModel):
    model: str
    model_digest: str = Field(description="Equal digests score equally.")
    truncated_tokens: int = Field(ge=0, description="Cut off before scoring, the input being too long.")


class RowScore(_Named):
    """A row's score, raw: the model's own gain and bias, nothing else."""

    value: float
    components: dict[str, float] = Field(description="The unweighted parts of a composite.")
    steps: list[float] = Field(description="One for each step, from a process reward model.")


class RowFailure(_Named):
    """A row without a score. Never 0, null or NaN."""

    error: RowError


class ScoreAnswer(BaseModel):
    """One entry for each input, in order."""

    scores: list[RowScore | RowFailure]


class ScoreShape:
    """See shapes.Shape."""

    body = ScoreRequest
    takes_nothing = False

    def model(self, body: ScoreRequest) -> str:
        """As the body says."""
        return body.model

    def fingerprint(self, body: ScoreRequest) -> str:
        """As the body says."""
        return body.tokenizer_fingerprint

    def rows(self, body: ScoreRequest, _query: Query) -> Sequence[Decoded]:
        """One for each input, or why it cannot be read."""
        return [decoded(partial(_row, row, body.tokenizer_fingerprint)) for row in body.inputs]

    def answer(self, _body: ScoreRequest, _query: Query, scored: Scored) -> Any:
        """See ScoreAnswer."""
        return {"scores": [_result(checked(outcome), scored) for outcome in scored.outcomes]}


def _row(row: ScoreInput, fingerprint: str) -> ScoreRow:
    if row.messages:
        if row.prompt or row.completion:
            raise InvalidInput("text and messages are both given; messages hold the answer already")
        return conversation_row([(one.role, one.content) for one in row.messages], row.columns)
    if row.prompt or row.completion:
        return text_row(row.prompt, row.completion, row.columns)
    if row.completion_ids is None and not row.prompt_ids:
        raise InvalidInput("the input is empty; expected messages, or prompt and completion, or token ids")
    if not fingerprint:
        raise Mismatch("token ids need tokenizer_fingerprint, so that they mean the same here")
    ids = TokenIds(
        prompt=tuple(row.prompt_ids), completion=tuple(row.completion_ids or ()), fingerprint=fingerprint
    )
    return ScoreRow(messages=(), completion="", columns=row.columns, ids=ids)


def _result(outcome: ScoreOutcome, scored: Scored) -> dict[str, Any]:
    result: dict[str, Any] = (
        {"error": {"code": outcome.error.status, "message": str(outcome.error)}}
        if outcome.error is not None
        else {"value": outcome.value, "components": outcome.components, "steps": outcome.steps}
    )
    return result | {
        "model": scored.name,
        "model_digest": outcome.digest or scored.digest,
        "truncated_tokens": outcome.truncated_tokens,
    }
