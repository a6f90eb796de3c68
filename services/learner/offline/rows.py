"""The rows of an offline run's data, as token ids. Every mistake names place and field. Knows no model.

    dpo    {"prompt": …, "chosen": …, "rejected": …}, and TRL's and HH-RLHF's other pairs: comparisons/pairs.py
    ilql   {"prompt": …, "completion": …, "reward": number}

A prompt is text or a list of {role, content}, as in online runs; an answer is text or one message of the assistant, and
ends with the tokenizer's end token. A pair all in text is read as it stands, as TRL reads it; any other pair's prompt
is a conversation and goes through the chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from services.common.comparisons.fields import Malformed, messages, number, text
from services.common.comparisons.pairs import parse_answer, parse_pair
from services.common.comparisons.records import Message
from services.common.comparisons.sources import Row as Given
from services.common.comparisons.sources import rows
from services.common.errors import InvalidInput
from services.common.spec.library import DpoSpec
from services.common.spec.run import RunSpec
from services.common.tasks.registry import TASK_PREFIX
from services.learner.prompts import Prompt, prompt_of
from services.learner.sample import Ids

_PAIR = ("prompt", "chosen", "rejected")
_Asked = str | list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with one answer to it; reward: 0 where the data gives none."""

    prompt_ids: Ids
    completion_ids: Ids
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers to one prompt."""

    chosen: Answer
    rejected: Answer


Row = Answer | Compared


def load_rows(spec: RunSpec, tokenizer: Any, *, context_length: int) -> list[Row]:
    """All rows of the split. A row beyond the context is a mistake, not cut.

    Raises NotFound, InvalidInput, or ConfigError where a source needs the extra `data`.
    """
    source, split = spec.data.prompts, spec.data.split
    if source.startswith(TASK_PREFIX):
        raise InvalidInput(
            f"data.prompts = {source}: a task has prompts alone, {spec.algorithm.kind} learns from answers to them"
        )
    read: Callable[[str, Given, Any], Row] = _compared if isinstance(spec.algorithm, DpoSpec) else _rewarded
    made: list[Row] = []
    for place, row in rows(source):
        try:
            if isinstance(row, Malformed):
                raise row
            if row.get("split") in (None, split):
                made.append(read(place, row, tokenizer))
                _check_length(place, made[-1], context_length)
        except Malformed as problem:
            raise InvalidInput(f"{place}: {problem.field}: {problem.expected}") from None
    if not made:
        raise InvalidInput(f"{source}: there is no row of split {split!r} in it")
    return made


def _compared(place: str, row: Given, tokenizer: Any) -> Compared:
    asked: _Asked
    if all(isinstance(row.get(name), str) for name in _PAIR):
        asked, chosen, rejected = (text(row[name], name) for name in _PAIR)
    else:
        said, chosen, rejected = parse_pair(row)
        asked = _chat(said)
    prompt = prompt_of(place, {"prompt": asked}, tokenizer)
    return Compared(
        _answer(chosen, "chosen", prompt, tokenizer), _answer(rejected, "rejected", prompt, tokenizer)
    )


def _rewarded(place: str, row: Given, tokenizer: Any) -> Answer:
    given = row.get("prompt")
    asked: _Asked = text(given, "prompt") if isinstance(given, str) else _chat(messages(given, "prompt"))
    answer, reward = parse_answer(row.get("completion"), "completion"), number(row.get("reward"), "reward")
    if reward is None:
        raise Malformed("reward", "expected a number, there is none")
    return _answer(
        answer, "completion", prompt_of(place, {"prompt": asked}, tokenizer), tokenizer, reward=reward
    )


def _chat(said: Iterable[Message]) -> list[dict[str, str]]:
    return [asdict(one) for one in said]


def _answer(said: str, field: str, prompt: Prompt, tokenizer: Any, *, reward: float = 0.0) -> Answer:
    """The end token comes once, also where the text ends with it already (TRL)."""
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if ids[-1:] != end:
        ids = [*ids, *end]
    if not ids:
        raise Malformed(field, "has no token")
    return Answer(prompt.token_ids, np.array(ids, np.int32), reward)


def _check_length(place: str, row: Row, context_length: int) -> None:
    for one in (row.chosen, row.rejected) if isinstance(row, Compared) else (row,):
        size = len(one.prompt_ids) + len(one.completion_ids)
        if context_length and size > context_length:
            raise InvalidInput(f"{place}: {size} tokens, but the model's context is {context_length}")
