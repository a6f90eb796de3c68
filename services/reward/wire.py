"""Reward rows, outcomes and descriptions to and from the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common.arrays import to_vector
from services.common.errors import InvalidInput, Mismatch
from services.models.wire import model_info
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds
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


def decode_row(row: reward.ScoreInput, fingerprint: str = "") -> ScoreRow:
    """What is to be scored; ids, where there is no text, are of the tokenizer `fingerprint`.

    Raises InvalidInput for nothing, for a wrong end, and for ids that cannot be read.
    """
    columns: Mapping[str, str] = dict(row.columns)
    if row.messages:
        *before, answer = row.messages
        if answer.role != "assistant":
            raise InvalidInput(f"the last message is of role {answer.role or '(none)'}, expected assistant")
        if row.completion:
            raise InvalidInput("completion and messages are both given; messages hold the answer already")
        return ScoreRow(messages=conversation(before, ""), completion=answer.content, columns=columns)
    if row.prompt or row.completion:
        return ScoreRow(
            messages=conversation((), row.prompt),
            completion=row.completion,
            columns=columns,
            rendered=row.rendered,
        )
    if not row.HasField("completion_ids") and not row.HasField("prompt_ids"):
        raise InvalidInput("the input is empty; expected messages, or prompt and completion, or token ids")
    if not fingerprint:
        raise Mismatch("token ids need tokenizer_fingerprint, so that they mean the same here")
    ids = TokenIds(
        prompt=_ids(row.prompt_ids, "prompt_ids") if row.HasField("prompt_ids") else (),
        completion=_ids(row.completion_ids, "completion_ids"),
        fingerprint=fingerprint,
    )
    return ScoreRow(messages=(), completion="", columns=columns, ids=ids)


def _ids(tensor: common.Tensor, field: str) -> tuple[int, ...]:
    return tuple(to_vector(tensor, "int32", field=field).tolist())


def encode_score(outcome: ScoreOutcome, scored: Scored, *, origin: str) -> common.Score:
    """The Score message: a value or an error, and whose it is."""
    score = common.Score(
        model=scored.name,
        model_digest=outcome.digest or scored.digest,
        truncated_tokens=outcome.truncated_tokens,
    )
    if outcome.value is not None:
        score.value = outcome.value
        score.components.update(outcome.components)
        score.steps.extend(outcome.steps)
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
