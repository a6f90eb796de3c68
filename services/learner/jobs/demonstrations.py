"""Reads demonstrations: JSON lines with `prompt` and `completion`, text or messages.

Every mistake names file, line and field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput
from services.common.jsonl import json_rows
from services.learner.jobs.groups import Groups, Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """An answer to learn to give. `group`: what a split goes by; rows of one prompt have one."""

    messages: Messages
    answer: str
    group: str


def read_demonstrations(path: Path) -> list[Demonstration]:
    """All rows of a file: TRL's prompt-completion schema, or `messages` whose last one is the answer.

    Raises NotFound, or InvalidInput for a malformed row or an empty file.
    """
    rows = [_demonstration(place, row) for place, row in json_rows(path)]
    if not rows:
        raise InvalidInput(f"{path}: there is no demonstration in it")
    groups = Groups()
    for row in rows:
        groups.add(row.messages, row.group)
    return [replace(row, group=groups.of(row.messages)) for row in rows]


def _demonstration(place: str, row: dict[str, Any]) -> Demonstration:
    if "messages" in row:
        whole = _messages(place, "messages", row["messages"], "user")
        prompt, answer = whole[:-1], whole[-1:]
        if answer[0][0] != "assistant":
            raise InvalidInput(f"{place}: messages: expected the assistant's answer at the end")
    else:
        prompt = _messages(place, "prompt", row.get("prompt"), "user")
        answer = _messages(place, "completion", row.get("completion"), "assistant")
    if not prompt:
        raise InvalidInput(f"{place}: messages: expected something before the answer")
    if len(answer) != 1:
        raise InvalidInput(f"{place}: completion: expected one message, got {len(answer)}")
    named = (row[name] for name in ("prompt_id", "tree") if row.get(name) not in (None, ""))
    return Demonstration(messages=prompt, answer=answer[0][1], group=str(next(named, prompt)))


def _messages(place: str, name: str, value: Any, role: str) -> Messages:
    if isinstance(value, str):
        return ((role, value),)
    fine = isinstance(value, Sequence) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not fine or not value:
        raise InvalidInput(f"{place}: {name}: expected text or a list of {{role, content}}")
    return tuple((one["role"], one["content"]) for one in value)
