"""POST /get_reward: what OpenRLHF's --reward.remote_url calls.

Defined by its client and its example server: OpenRLHF/OpenRLHF, openrlhf/utils/agent.py
(SingleTurnAgentExecutor._fetch_rewards_via_http) and openrlhf/cli/serve_rm.py; older releases,
openrlhf/utils/remote_rm_utils.py, send `query` alone. `query` is the policy's whole text, special tokens and all, of
which `prompts` is the beginning. With several URLs it sends an empty list to all but the first, and reads no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field

from services.common.errors import InvalidInput
from services.reward.answering import Decoded
from services.reward.http.shapes import (
    FIRST_ERROR,
    ROWS,
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

Queries = Annotated[list[str], ROWS, FIRST_ERROR]
Labels = Annotated[list[Any], ROWS]


class RewardRequest(Tolerant):
    """Lists of the same length."""

    query: Queries = Field(description="Prompt and answer, as the policy saw them.")
    prompts: Queries | None = Field(None, description="The beginning of each query.")
    labels: Labels | None = Field(None, description="For rules, as the column `label`.")


class RewardAnswer(BaseModel):
    """rewards: one for each query. scores: the same. extra_logs: the parts of a composite, by name."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class OpenRlhfShape(ForeignShape[RewardRequest]):
    """See shapes.Shape."""

    body = RewardRequest
    takes_nothing = True

    def rows(self, body: RewardRequest, query: Query) -> Sequence[Decoded]:
        """A model reads the whole query as it stands, a rule what comes after the prompt."""
        count = len(body.query)
        for field, column in (("prompts", body.prompts), ("labels", body.labels)):
            if column is not None and len(column) != count:
                raise InvalidInput(
                    f"{field}: expected one for each of {count} queries, got {len(column)}",
                    {field: f"{count} entries"},
                )
        prompts = body.prompts or [""] * count
        labels = body.labels or [None] * count
        rendered = True if query.rendered is None else query.rendered
        whole = rendered and query.whole
        return [
            decoded(partial(_row, *entry, rendered=rendered, whole=whole))
            for entry in zip(body.query, prompts, labels, strict=True)
        ]

    def answer(self, _body: RewardRequest, _query: Query, scored: Scored) -> Any:
        """See RewardAnswer."""
        values = values_of(scored, "query")
        names = sorted({name for outcome in scored.outcomes for name in outcome.components})
        logs = {
            name: [outcome.components[name] for outcome in scored.outcomes]
            for name in names
            if all(name in outcome.components for outcome in scored.outcomes)
        }
        return {"rewards": values, "scores": values, "extra_logs": logs}


def _row(query: str, prompt: str, label: object, *, rendered: bool, whole: bool) -> ScoreRow:
    columns = label_columns(label)
    if query.startswith(prompt):
        return text_row(prompt, query[len(prompt) :], columns, rendered=rendered)
    # The policy cut its prompt, or its tokenizer writes it differently.
    if whole:
        return text_row("", query, columns, rendered=True)
    raise InvalidInput("its prompt is not the beginning of the query, so the answer cannot be told from it")
