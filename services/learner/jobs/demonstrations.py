"""Reads demonstrations: JSON lines with `prompt` and `completion`, text or messages.

Prompts and answers are read as those of comparisons are, HH's dialogues in text too, so that what a model is tuned on
and judged by reads alike. Every mistake names file, line and field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.common.comparisons.fields import Malformed, column, messages
from services.common.comparisons.pairs import is_dialogue, parse_answer, parse_prompt
from services.common.comparisons.records import Message
from services.common.errors import InvalidInput
from services.common.jsonl import json_rows
from services.learner.jobs.groups import Groups, Messages, names_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """An answer to learn to give. `group`: what a split goes by; rows of one prompt have one. `place`: file:line."""

    messages: Messages
    answer: str
    group: str
    place: str = ""


def read_demonstrations(path: Path) -> list[Demonstration]:
    """All rows of a file: TRL's prompt-completion schema, or `messages` whose last one is the answer.

    Raises NotFound, or InvalidInput for a malformed row or an empty file.
    """
    rows: list[Demonstration] = []
    groups = Groups()
    for place, row in json_rows(path):
        try:
            asked, answer = _parsed(row)
            names = names_of(column(row, "prompt_id"), column(row, "tree"))
        except Malformed as problem:
            raise InvalidInput(f"{place}: {problem.field}: {problem.expected}") from None
        prompt = tuple((message.role, message.content) for message in asked)
        for name in names or (str(prompt),):
            groups.add(prompt, name)
        rows.append(Demonstration(messages=prompt, answer=answer, group="", place=place))
    if not rows:
        raise InvalidInput(f"{path}: there is no demonstration in it")
    return [replace(row, group=groups.of(row.messages)) for row in rows]


def _parsed(row: dict[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Prompt and answer. Raises Malformed."""
    if "messages" not in row:
        prompt = row.get("prompt")
        dialogue = isinstance(prompt, str) and is_dialogue(prompt)
        return parse_prompt(prompt), parse_answer(row.get("completion"), "completion", of_dialogue=dialogue)
    whole = messages(row["messages"], "messages")
    if whole[-1].role != "assistant":
        raise Malformed("messages", "expected the assistant's answer at the end")
    if len(whole) < 2:
        raise Malformed("messages", "expected something before the answer")
    return whole[:-1], whole[-1].content
