"""Owns one row of TRL's preference schemas: from JSON to prompt, chosen and rejected text. Knows no file.

Told apart by the fields of the row; messages are {role, content}:
    explicit prompt, messages   {"prompt": [message…], "chosen": [message], "rejected": [message]}
    explicit prompt, text       {"prompt": "…", "chosen": "…", "rejected": "…"}
    implicit prompt, messages   {"chosen": [message…, answer], "rejected": [message…, answer]}
    implicit prompt, text       {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}: HH-RLHF
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.preference.domain import MAX_ID_CHARACTERS, Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two answers, the first preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


class Malformed(Exception):
    """What is wrong with a row: the field, and what was expected there."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(field, expected)
        self.field = field
        self.expected = expected


def parse_json(line: bytes) -> dict[str, Any]:
    """The object on one line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise Malformed("row", "expected UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise Malformed("row", f"expected one JSON object: {error}") from None
    if not isinstance(row, dict):
        raise Malformed("row", f"expected a JSON object, got {_kind(row)}")
    return row


def parse_pair(row: Mapping[str, Any]) -> Pair:
    """The pair of a row of whichever schema. Raises Malformed."""
    for side in _SIDES:
        if side not in row:
            raise Malformed(side, "expected text or a list of messages, there is none")
    if "prompt" not in row:
        return _implicit(row)
    if isinstance(row["prompt"], str):
        asked = Message("user", _text(row["prompt"], "prompt"))
        return Pair((asked,), _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected"))
    prompt = _messages(row["prompt"], "prompt")
    return Pair(prompt, _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected"))


def _answer(value: object, field: str) -> str:
    messages = _messages(value, field)
    if len(messages) != 1:
        raise Malformed(field, f"expected one message after the prompt, got {len(messages)}")
    return messages[0].content


def _implicit(row: Mapping[str, Any]) -> Pair:
    sides = [
        _turns(row[side], side) if isinstance(row[side], str) else _messages(row[side], side)
        for side in _SIDES
    ]
    for messages, side in zip(sides, _SIDES, strict=True):
        if len(messages) < 2:
            raise Malformed(side, "expected a prompt and an answer, or a prompt column")
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("rejected", "expected the same messages as chosen but for the last one")
    return Pair(chosen[:-1], chosen[-1].content, rejected[-1].content)


def _turns(text: str, field: str) -> tuple[Message, ...]:
    """The messages of an HH-RLHF dialogue."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise Malformed(field, "expected a dialogue that begins with '\\n\\nHuman:', or a prompt column")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_ROLES[speaker], _text(said.strip(), field)) for speaker, said in turns)


def _messages(value: object, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Malformed(field, f"expected text or a list of messages, got {_kind(value)}")
    messages = []
    for number, message in enumerate(value):
        where = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise Malformed(where, f"expected {{role, content}}, got {_kind(message)}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise Malformed(f"{where}.role", f"expected text, got {_kind(role)}")
        messages.append(Message(role, _text(content, f"{where}.content")))
    return tuple(messages)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Malformed(field, f"expected text, got {_kind(value)}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(field, "expected text without NUL characters and lone surrogates")
    return value


def column(row: Mapping[str, Any], name: str, default: str) -> str:
    """An optional column as an id; `default` where it is absent or empty."""
    value = row.get(name)
    if value is None or value == "":
        return default
    # Data sets number their prompts; a number is as good a name as any.
    text = _text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, name)
    if len(text) > MAX_ID_CHARACTERS:
        raise Malformed(name, f"expected at most {MAX_ID_CHARACTERS} characters, got {len(text)}")
    return text


def _kind(value: object) -> str:
    names = {
        "NoneType": "null",
        "dict": "an object",
        "list": "a list",
        "str": "text",
        "bool": "true or false",
    }
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value).__name__, "a number")
