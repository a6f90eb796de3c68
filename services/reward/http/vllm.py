"""POST /classify and /pooling: vLLM's pooling API as its clients use it for reward models (verl's reward loop, PRMs).

Defined by vllm-project/vllm, vllm/entrypoints/pooling/{base,classify,pooling}/protocol.py; how a trainer reads it:
volcengine/verl, verl/experimental/reward_loop/reward_loop.py (`data[-1].probs[-1]`, with the activation off). Here
scores are raw unless `use_activation` is true, which is our own choice: vLLM's default is the model's. A text has
its template already and gets the tokenizer's special tokens, as at vLLM (`add_special_tokens`), but no second one at
its beginning; messages get the model's own template. `usage` is not counted: its numbers are 0.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from services.common.errors import Mismatch
from services.reward.answering import Decoded
from services.reward.config import is_name
from services.reward.http.activation import shown
from services.reward.http.score import MAX_IDS, MAX_MESSAGES, TokenId
from services.reward.http.shapes import (
    FIRST_ERROR,
    ROWS,
    ForeignShape,
    Query,
    Tolerant,
    conversation_row,
    decoded,
    lone_row,
    values_of,
)
from services.reward.http.tei import LABEL
from services.reward.rewards.base import ScoreRow, TokenIds
from services.reward.scoring import Scored

Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS), FIRST_ERROR]


class TextPart(Tolerant):
    """A part of a message; only text can be scored."""

    type: Literal["text"]
    text: str


class PoolingMessage(Tolerant):
    """One message, as in OpenAI's chat API."""

    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES), FIRST_ERROR]

    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(one.text for one in self.content)


class PoolingRequest(Tolerant):
    """`input` (texts, or token ids with ?tokenizer_fingerprint=) or `messages`, the answer last."""

    model: str | None = Field(
        None, max_length=256, description="Our name for it; a path is none. ?model= comes first."
    )
    input: (
        str
        | Ids
        | Annotated[list[str], ROWS, Field(min_length=1), FIRST_ERROR]
        | Annotated[list[Ids], ROWS, Field(min_length=1), FIRST_ERROR]
        | None
    ) = None
    messages: (
        Annotated[list[PoolingMessage], Field(min_length=1, max_length=MAX_MESSAGES), FIRST_ERROR] | None
    ) = None
    use_activation: bool | None = Field(
        None, description="True: the sigmoid of the score, unless that is a probability."
    )
    activation: bool | None = Field(None, description="The same, as older releases call it.")
    add_special_tokens: bool = Field(
        True, description="Around texts of `input`, unless they begin with them."
    )
    encoding_format: Literal["float"] = "float"
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="Models cut at their own limit.")

    @model_validator(mode="after")
    def _one_of_both(self) -> PoolingRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected either input or messages")
        return self

    @property
    def activated(self) -> bool:
        """Whether probabilities are asked for."""
        return bool(self.use_activation or self.activation)


class Usage(BaseModel):
    """Not counted here."""

    prompt_tokens: int
    total_tokens: int


class _Listed(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class Classification(BaseModel):
    """A score as the only class's number."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyAnswer(_Listed):
    """vLLM's ClassificationResponse."""

    data: list[Classification]


class Pooled(BaseModel):
    """[score], or [[score], …] with one for each step of a process reward model."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]]


class PoolingAnswer(_Listed):
    """vLLM's PoolingResponse."""

    data: list[Pooled]


class _PoolingShape(ForeignShape[PoolingRequest]):
    body = PoolingRequest

    def model(self, body: PoolingRequest) -> str:
        """As the body says; a hub's path, which these clients always send, is no name of ours and names nothing."""
        name = body.model or ""
        return name if is_name(name) else ""

    def rows(self, body: PoolingRequest, query: Query) -> Sequence[Decoded]:
        """One for each text or list of ids; one for all messages."""
        if body.messages is not None:
            turns = [(one.role, one.text()) for one in body.messages]
            return [decoded(partial(conversation_row, turns))]
        given: Any = body.input
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        return [decoded(partial(_row, one, query, body.add_special_tokens)) for one in given]

    def _listed(self, prefix: str, scored: Scored, data: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": scored.name,
            "data": data,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }


class ClassifyShape(_PoolingShape):
    """See shapes.Shape."""

    def answer(self, body: PoolingRequest, _query: Query, scored: Scored) -> Any:
        """See ClassifyAnswer."""
        data = [
            {
                "index": index,
                "label": LABEL,
                "probs": [shown(outcome, value, activated=body.activated)],
                "num_classes": 1,
            }
            for index, (value, outcome) in enumerate(
                zip(values_of(scored, "input"), scored.outcomes, strict=True)
            )
        ]
        return self._listed("classify", scored, data)


class PoolingShape(_PoolingShape):
    """See shapes.Shape."""

    def answer(self, body: PoolingRequest, _query: Query, scored: Scored) -> Any:
        """See PoolingAnswer."""
        values = values_of(scored, "input")
        data: list[dict[str, Any]] = [
            {
                "index": index,
                "object": "pooling",
                "data": [[step] for step in outcome.steps]
                or [shown(outcome, value, activated=body.activated)],
            }
            for index, (value, outcome) in enumerate(zip(values, scored.outcomes, strict=True))
        ]
        return self._listed("pool", scored, data)


def _row(given: str | list[int], query: Query, special_tokens: bool) -> ScoreRow:
    if isinstance(given, str):
        return lone_row(given, query.rendered, special_tokens=special_tokens)
    if not query.tokenizer_fingerprint:
        raise Mismatch("token ids need ?tokenizer_fingerprint=, so that they mean the same here")
    ids = TokenIds(prompt=(), completion=tuple(given), fingerprint=query.tokenizer_fingerprint)
    return ScoreRow(messages=(), completion="", ids=ids)
