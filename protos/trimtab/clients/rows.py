"""Rows as trainers have them to ScoreInput: prompt, completion, data-set columns. Knows no trainer by name.

A prompt or a completion is text or a list of chat messages; a column is anything that JSON can say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

Item = TypeVar("Item")


def score_input(
    prompt: Any, completion: Any, columns: Mapping[str, str] | None = None, *, rendered: bool = False
) -> wire.ScoreInput:
    """One row. Text stays text; as soon as one side is messages the whole row is a conversation.

    rendered: the text has a chat template around it already, so the model puts none. An answer of no text, which
    a policy that ends at once gives, is one all the same, with or without a prompt.
    """
    if isinstance(prompt, str) and isinstance(completion, str) and (prompt or completion or rendered):
        return wire.ScoreInput(prompt=prompt, completion=completion, columns=columns, rendered=rendered)
    before = _messages(prompt, "user") if len(prompt) else []
    return wire.ScoreInput(messages=[*before, *_answer(completion)], columns=columns)


def _answer(completion: Any) -> list[common.ChatMessage]:
    """The answer's messages. One that was cut off behind a tool's result ends in an answer of no text."""
    messages = _messages(completion, "assistant")
    if messages and messages[-1].role == "tool":
        messages.append(common.ChatMessage(role="assistant"))
    return messages


def _messages(value: Any, role: str) -> list[common.ChatMessage]:
    if isinstance(value, str):
        return [common.ChatMessage(role=role, content=value)]
    return [common.ChatMessage(role=each["role"], content=message_text(each)) for each in value]


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message: its content or the text parts of it, then its tool calls as JSON.

    ValueError for a part that is no text, such as an image: left out in silence it would falsify the score.
    """
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else (content or [])
    others = sorted({str(part.get("type")) for part in parts} - {"text"})
    if others:
        raise ValueError(f"a message has content of type {', '.join(others)}; only text can be scored")
    texts = ["".join(part["text"] for part in parts)]
    if message.get("tool_calls"):
        texts.append(column_text(message["tool_calls"]))
    return "\n".join(text for text in texts if text)


def column_text(value: Any) -> str:
    """A column's value as the text that travels: a string as it is, anything else as JSON.

    Arrays and scalars of numpy or torch become plain numbers, dates ISO text. TypeError for what JSON
    cannot say.
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    for way in ("tolist", "isoformat"):
        if hasattr(value, way):
            return getattr(value, way)()
    raise TypeError(f"a value of type {type(value).__name__} is no JSON")


def row_columns(columns: Mapping[str, Any]) -> dict[str, str]:
    """One row's columns as text. None is left out: a rule then says which column it lacks."""
    return {name: column_text(value) for name, value in columns.items() if value is not None}


def portions(
    items: Iterable[Item], size: Callable[[Item], tuple[int, int]], *, max_rows: int, max_bytes: int
) -> Iterator[list[Item]]:
    """Consecutive lists within both limits; an item that is larger than a limit stands alone.

    size: of an item, (rows, bytes).
    """
    current: list[Item] = []
    rows = filled = 0
    for item in items:
        more_rows, more_bytes = size(item)
        if current and (rows + more_rows > max_rows or filled + more_bytes > max_bytes):
            yield current
            current, rows, filled = [], 0, 0
        current.append(item)
        rows, filled = rows + more_rows, filled + more_bytes
    if current:
        yield current


def split_inputs(
    inputs: Sequence[wire.ScoreInput], *, max_rows: int, max_bytes: int
) -> list[list[wire.ScoreInput]]:
    """Inputs in order, as the lists of separate calls."""
    return list(portions(inputs, lambda row: (1, row.ByteSize()), max_rows=max_rows, max_bytes=max_bytes))
