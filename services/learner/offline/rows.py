"""The rows of an offline run's file, as token ids. Every mistake names file, line and field. Knows no model.

    dpo    {"prompt": …, "chosen": "text", "rejected": "text"}
    ilql   {"prompt": …, "completion": "text", "reward": number}

A prompt is text or a list of {role, content}, as in online runs. An answer ends with the tokenizer's end token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.common.errors import InvalidInput
from services.common.jsonl import json_rows
from services.common.spec.library import DpoSpec
from services.common.spec.run import RunSpec
from services.learner.prompts import Prompt, prompt_of
from services.learner.sample import Ids


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with one answer to it; reward: 0 where the file gives none."""

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
    """All rows of the split. Raises NotFound, or InvalidInput; a row beyond the context is a mistake, not cut."""
    path = Path(spec.data.prompts)
    compared = isinstance(spec.algorithm, DpoSpec)
    rows: list[Row] = []
    for place, row in json_rows(path):
        if row.get("split", spec.data.split) != spec.data.split:
            continue
        prompt = prompt_of(place, row, tokenizer)
        if compared:
            chosen, rejected = (
                _answer(place, row, name, prompt, tokenizer) for name in ("chosen", "rejected")
            )
            made: Row = Compared(chosen, rejected)
        else:
            made = _answer(place, row, "completion", prompt, tokenizer, _reward(place, row))
        for one in (made.chosen, made.rejected) if isinstance(made, Compared) else (made,):
            size = len(one.prompt_ids) + len(one.completion_ids)
            if context_length and size > context_length:
                raise InvalidInput(f"{place}: {size} tokens, but the model's context is {context_length}")
        rows.append(made)
    if not rows:
        raise InvalidInput(f"{path}: the file has no row of split {spec.data.split!r}")
    return rows


def _answer(
    place: str, row: dict[str, Any], name: str, prompt: Prompt, tokenizer: Any, reward: float = 0.0
) -> Answer:
    text = row.get(name)
    if not isinstance(text, str):
        raise InvalidInput(f"{place}: {name}: expected text")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
    if not ids:
        raise InvalidInput(f"{place}: {name}: has no token")
    return Answer(prompt.token_ids, np.array(ids, np.int32), reward)


def _reward(place: str, row: dict[str, Any]) -> float:
    value = row.get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{place}: reward: expected a finite number")
    return float(value)
