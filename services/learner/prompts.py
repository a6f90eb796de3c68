"""Reads the prompts of a run: JSONL, a task's, a data set's. Every mistake names file, line and field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput, UserError
from services.common.spec.run import DataSpec
from services.common.tasks.registry import prompt_rows
from services.models.loading import encode_prompt

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as read: messages or text, its ids, and the other columns as strings."""

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    text: str
    token_ids: Ids
    columns: dict[str, str] = field(default_factory=dict)


def load_prompts(spec: DataSpec, tokenizer: Any, *, context_length: int, max_new_tokens: int) -> list[Prompt]:
    """All prompts of the split, encoded. Raises NotFound, or InvalidInput for an empty or malformed file.

    A prompt that leaves no room for max_new_tokens in the context is a mistake, not cut in silence.
    """
    prompts = [
        prompt_of(place, row, tokenizer)
        for place, row in prompt_rows(spec.prompts, spec.split)
        if row.get("split") in (None, spec.split)
    ]
    if not prompts:
        raise InvalidInput(f"{spec.prompts}: the prompt file has no prompt of split {spec.split!r}")
    for prompt in prompts:
        total = len(prompt.token_ids) + max_new_tokens
        if context_length and total > context_length:
            name = " ".join(prompt.prompt_id.split())[:60]
            raise InvalidInput(
                f"{spec.prompts}: prompt {name} has {len(prompt.token_ids)} tokens; with {max_new_tokens} "
                f"new ones that is {total - context_length} over the model's context of {context_length}"
            )
    return prompts


def prompt_of(place: str, row: dict[str, Any], tokenizer: Any) -> Prompt:
    """The prompt of a row, encoded. Raises InvalidInput."""
    value = row.get("prompt")
    if isinstance(value, str) and value.strip():
        messages: tuple[tuple[str, str], ...] = ()
        text = value
    elif isinstance(value, list) and value and all(map(_is_message, value)) and value[-1]["content"].strip():
        # Only the last has to say something: data sets write an empty system message before it.
        messages = tuple((message["role"], message["content"]) for message in value)
        text = messages[-1][1]
    else:
        raise InvalidInput(
            f"{place}: prompt: expected text, or a list of {{role, content}}, that is not empty"
        )
    try:
        chat = [{"role": role, "content": content} for role, content in messages]
        ids = encode_prompt(tokenizer, messages=chat, text=text)
    except UserError as error:
        raise InvalidInput(f"{place}: {error}") from error
    columns = {
        key: item if isinstance(item, str) else json.dumps(item)
        for key, item in row.items()
        if key not in {"prompt", "prompt_id", "split"}
    }
    name = str(row.get("prompt_id", place.rpartition(":")[2]))
    return Prompt(name, messages, text, np.array(ids, np.int32), columns)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
