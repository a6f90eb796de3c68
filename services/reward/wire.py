"""Reward rows, outcomes and descriptions to and from the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common.errors import InvalidInput, Mismatch
from services.models.wire import model_info
from services.reward.rewards.base import ScoreOutcome, ScoreRow
from services.reward.scoring import Scored, Slot
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as reward

_INPUT = {
    "text": reward.INPUT_KIND_TEXT,
    "messages": reward.INPUT_KIND_MESSAGES,
    "token_ids": reward.INPUT_KIND_TOKEN_IDS,
}
_TRUNCATION = {
    "left": reward.TRUNCATION_SIDE_LEFT,
    "right": reward.TRUNCATION_SIDE_RIGHT,
    "never": reward.TRUNCATION_SIDE_UNSPECIFIED,
}


def conversation(messages: Iterable[common.ChatMessage], text: str) -> tuple[tuple[str, str], ...]:
    """(role, content) pairs of a prompt given as messages, or else as text of a user."""
    pairs = tuple((message.role, message.content) for message in messages)
    return pairs or ((("user", text),) if text else ())


def decode_row(row: reward.ScoreInput) -> ScoreRow:
    """What is to be scored. Raises Mismatch for ids alone, InvalidInput for nothing or a wrong end."""
    columns: Mapping[str, str] = dict(row.columns)
    if row.messages:
        *before, answer = row.messages
        if answer.role != "assistant":
            raise InvalidInput(f"the last message is of role {answer.role or '(none)'}, expected assistant")
        if row.completion:
            raise InvalidInput("completion and messages are both given; messages hold the answer already")
        return ScoreRow(messages=conversation(before, ""), completion=answer.content, columns=columns)
    if not row.prompt and not row.completion:
        if row.completion_ids.data or row.prompt_ids.data:
            raise Mismatch("the input has token ids only, but the model reads text")
        raise InvalidInput("the input is empty; expected messages, or prompt and completion")
    return ScoreRow(messages=conversation((), row.prompt), completion=row.completion, columns=columns)


def encode_score(outcome: ScoreOutcome, scored: Scored, *, origin: str) -> common.Score:
    """The Score message: a value or an error, and whose it is."""
    score = common.Score(
        model=scored.name, model_digest=scored.digest, truncated_tokens=outcome.truncated_tokens
    )
    if outcome.value is not None:
        score.value = outcome.value
    elif outcome.error is not None:
        score.error.code = outcome.error.status
        score.error.message = str(outcome.error)
        score.error.origin = origin
    return score


def encode_info(slot: Slot) -> reward.RewardModelInfo:
    """The RewardModelInfo of a slot. A rule has no model facts, but its name and digest."""
    about = slot.source.describe()
    model = (
        common.ModelInfo(name=slot.name, model_digest=slot.source.digest)
        if about.facts is None
        else model_info(about.facts)
    )
    return reward.RewardModelInfo(
        name=slot.name,
        kind=slot.source.kind,
        model=model,
        input=_INPUT[about.input_kind],
        truncation=_TRUNCATION[about.truncates],
        max_tokens=about.max_tokens,
        gain=about.gain,
        bias=about.bias,
    )
