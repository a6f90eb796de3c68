"""POST /predict: text-embeddings-inference's classification, which reward services are often put behind.

Defined by huggingface/text-embeddings-inference, router/src/http/types.rs (PredictRequest, PredictInput,
PredictResponse): a text; a pair; or a batch of [text] and [text, text]. Here a lone text is one with
its chat template around it, to which the model adds its tokenizer's special tokens, as there; a pair is a prompt and
its answer. Scores are raw where the request does not say otherwise, which is our own choice: a reward is no
probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field

from services.common.errors import InvalidInput
from services.reward.answering import Decoded
from services.reward.http.activation import shown
from services.reward.http.shapes import (
    FIRST_ERROR,
    ROWS,
    ForeignShape,
    Query,
    Tolerant,
    decoded,
    lone_row,
    text_row,
    values_of,
)
from services.reward.rewards.base import ScoreRow
from services.reward.scoring import Scored

Texts = Annotated[list[str], Field(min_length=1, max_length=2), FIRST_ERROR]
Batch = Annotated[list[Texts], ROWS, Field(min_length=1), FIRST_ERROR]
LABEL = "LABEL_0"


class PredictRequest(Tolerant):
    """A text, a pair of texts, or a list of [text] and [text, text]."""

    inputs: str | Texts | Batch
    truncate: bool = Field(True, description="False: an input that is too long is an error.")
    raw_scores: bool = Field(True, description="False: the score's sigmoid, unless it is a probability.")


class Prediction(BaseModel):
    """A score under the only label there is."""

    score: float
    label: str


class PredictShape(ForeignShape[PredictRequest]):
    """See shapes.Shape."""

    body = PredictRequest

    def rows(self, body: PredictRequest, query: Query) -> Sequence[Decoded]:
        """One for each text or pair."""
        return [decoded(partial(_row, texts, query.rendered)) for texts in _texts(body)]

    def answer(self, body: PredictRequest, _query: Query, scored: Scored) -> Any:
        """[prediction] for one input, [[prediction], …] for a batch."""
        values = values_of(scored, "inputs")
        if not body.truncate:
            _check_whole(scored)
        predictions = [
            [{"score": shown(outcome, value, activated=not body.raw_scores), "label": LABEL}]
            for value, outcome in zip(values, scored.outcomes, strict=True)
        ]
        return predictions if _is_batch(body) else predictions[0]


def _is_batch(body: PredictRequest) -> bool:
    return not isinstance(body.inputs, str) and isinstance(body.inputs[0], list)


def _texts(body: PredictRequest) -> list[list[str]]:
    texts: list[list[str]] = [[]]
    if isinstance(body.inputs, str):
        return [[body.inputs]]
    for one in body.inputs:
        if isinstance(one, str):
            texts[0].append(one)
        else:
            texts.append(one)
    return texts[1:] if _is_batch(body) else texts[:1]


def _row(texts: Sequence[str], rendered: bool | None) -> ScoreRow:
    if len(texts) == 1:
        return lone_row(texts[0], rendered, special_tokens=True)
    return text_row(texts[0], texts[1], rendered=bool(rendered))


def _check_whole(scored: Scored) -> None:
    for index, outcome in enumerate(scored.outcomes):
        if outcome.truncated_tokens:
            raise InvalidInput(
                f"inputs[{index}]: {outcome.truncated_tokens} tokens too long, and truncate is false",
                {f"inputs[{index}]": "an input that fits"},
            )
