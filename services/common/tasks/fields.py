"""Reading a prompt and its references from rows of any source. A mistake is InvalidInput: field, what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.common.comparisons.fields import Malformed, field_names
from services.common.comparisons.pairs import parse_pair, parse_prompt
from services.common.errors import InvalidInput
from services.common.tasks.base import Messages, Row, TaskRow

_REFERENCES = ("references", "reference", "completion", "summary", "highlights", "chosen", "answer", "label")
_PROMPTS = ("prompt", "messages", "question", "instruction")


def text_of(row: Row, *names: str) -> str:
    """The first of the columns that the row has. Raises InvalidInput."""
    name = next((name for name in names if name in row), "")
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput(f"{name or ' or '.join(names)}: expected text, got {_kind(value)}")
    return value


def prompt_row(row: Row) -> TaskRow:
    """A row of any source: prompt (text or messages, alone or before an answer), references where it has any."""
    name = next((name for name in _PROMPTS if name in row), "")
    if not name and "chosen" in row:
        return compared_row(row)
    if not name:
        raise InvalidInput(f"expected a column among {', '.join(_PROMPTS)}, got {field_names(row)}")
    prompt = prompt_of(row[name], name)
    references = _references(row)
    if name == "messages" and isinstance(prompt, tuple) and prompt[-1][0] == "assistant":
        prompt, references = prompt[:-1], (prompt[-1][1],)
    return TaskRow(prompt=prompt, references=references, columns=columns_of(row, name))


def compared_row(row: Row) -> TaskRow:
    """The prompt of a pair in any of TRL's or HH-RLHF's forms; the chosen answer is the reference."""
    try:
        messages, chosen, _ = parse_pair(row)
    except Malformed as error:
        raise InvalidInput(f"{error.field}: {error.expected}") from None
    return TaskRow(prompt=tuple((one.role, one.content) for one in messages), references=(chosen,))


def prompt_of(value: Any, name: str) -> str | Messages:
    """Text as it is; messages (and a dialogue in text) as (role, content). Raises InvalidInput."""
    if isinstance(value, str) and value.strip() and not value.startswith("\n\nHuman:"):
        return value
    try:
        return tuple((one.role, one.content) for one in parse_prompt(value, name))
    except Malformed as error:
        raise InvalidInput(f"{error.field}: {error.expected}") from None


def columns_of(row: Row, *without: str) -> dict[str, str]:
    """The other columns that are text or numbers, as text."""
    return {
        name: str(value)
        for name, value in row.items()
        if name not in without and isinstance(value, str | int | float) and not isinstance(value, bool)
    }


def _references(row: Row) -> tuple[str, ...]:
    for name in _REFERENCES:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return (value,)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return tuple(_content(one) for one in value if _content(one))
    return ()


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value.get("content") or "") if isinstance(value, dict) else ""


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
