"""POST /slime: what slime's --rm-type remote_rm sends to --rm-url.

Defined by THUDM/slime, slime/rollout/rm_hub/__init__.py, remote_rm: one sample, {prompt, response, label}; the JSON
of the answer, whole, becomes the sample's reward. It is a plain number; with ?key=score it is {"score": number}, for
runs with --reward-key score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from services.reward.answering import Decoded
from services.reward.http.score import MAX_MESSAGES
from services.reward.http.shapes import (
    FIRST_ERROR,
    ForeignShape,
    Query,
    Tolerant,
    decoded,
    label_columns,
    text_row,
    values_of,
)
from services.reward.rewards.base import ScoreRow
from services.reward.scoring import Scored


class SlimeMessage(Tolerant):
    """One message of a prompt."""

    role: str = Field(min_length=1, max_length=64)
    content: str


class SlimeRequest(Tolerant):
    """One sample. A prompt of text has the policy's chat template around it already (?rendered=false: it has not)."""

    prompt: str | Annotated[list[SlimeMessage], Field(max_length=MAX_MESSAGES), FIRST_ERROR]
    response: str
    label: Any = Field(None, description="For rules, as the column `label`.")


class SlimeShape(ForeignShape[SlimeRequest]):
    """See shapes.Shape."""

    body = SlimeRequest

    def rows(self, body: SlimeRequest, query: Query) -> Sequence[Decoded]:
        """The one sample."""
        return [decoded(lambda: _row(body, True if query.rendered is None else query.rendered))]

    def answer(self, _body: SlimeRequest, query: Query, scored: Scored) -> Any:
        """The number, or an object with it."""
        [value] = values_of(scored, "sample")
        return {query.key: value} if query.key else value


def _row(body: SlimeRequest, rendered: bool) -> ScoreRow:
    columns = label_columns(body.label)
    if isinstance(body.prompt, str):
        return text_row(body.prompt, body.response, columns, rendered=rendered)
    messages = tuple((one.role, one.content) for one in body.prompt)
    return ScoreRow(messages=messages, completion=body.response, columns=columns)
