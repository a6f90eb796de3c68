"""Owns the reading of single fields of a row. Every mistake is Malformed: the field, and what was expected there."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Any

from services.common.comparisons.records import Message

MAX_ID_CHARACTERS = 200
_UNSAYABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL and UTF-8 refuse them
_KINDS = {
    "NoneType": "null",
    "dict": "an object",
    "list": "a list",
    "str": "text",
    "bool": "true or false",
    "bytes": "bytes",
}


class Fault(enum.StrEnum):
    """Why a row is bad."""

    MALFORMED = "malformed"
    NOT_TEXT = "fields that are not text"
    IDENTICAL = "identical answers"


class Malformed(Exception):
    """What is wrong with a row: the field, what was expected there, and which fault that is."""

    def __init__(self, field: str, expected: str, fault: Fault = Fault.MALFORMED) -> None:
        super().__init__(field, expected)
        self.field = field
        self.expected = expected
        self.fault = fault


def kind(value: object) -> str:
    """What a value is, in words for a person."""
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, list) and all(type(one) is int for one in value):
        return "a list of numbers (token ids?)"
    return _KINDS.get(type(value).__name__, "a number")


def field_names(row: Mapping[str, Any]) -> str:
    """The first few of a row's fields, for an error of one line: a name may be anything."""
    return ", ".join(" ".join(str(name).split())[:40] for name in list(row)[:6])


def text(value: object, field: str) -> str:
    """Text without what cannot be stored. It may be empty."""
    if not isinstance(value, str):
        raise Malformed(field, f"expected text, got {kind(value)}", Fault.NOT_TEXT)
    if _UNSAYABLE.search(value):
        raise Malformed(field, "expected text without NUL characters and lone surrogates")
    return value


def messages(value: object, field: str) -> tuple[Message, ...]:
    """A list of {role, content}, at least one."""
    if not isinstance(value, list) or all(type(one) is int for one in value):
        raise Malformed(field, f"expected text or a list of messages, got {kind(value)}", Fault.NOT_TEXT)
    return tuple(_message(one, f"{field}[{number}]") for number, one in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise Malformed(where, f"expected {{role, content}}, got {kind(value)}", Fault.NOT_TEXT)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise Malformed(f"{where}.role", f"expected text, got {kind(role)}", Fault.NOT_TEXT)
    return Message(text(role, f"{where}.role"), text(content, f"{where}.content"))


def column(row: Mapping[str, Any], *names: str) -> str:
    """The first of these optional columns that is there, as an id; empty where none is."""
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        # Data sets number their prompts; a number is as good a name as any.
        named = whole(value)
        said = text(value if named is None else str(named), name)
        if len(said) > MAX_ID_CHARACTERS:
            raise Malformed(name, f"expected at most {MAX_ID_CHARACTERS} characters, got {len(said)}")
        return said
    return ""


def number(value: object, field: str, *, low: float = -math.inf, high: float = math.inf) -> float | None:
    """A finite number within bounds; None where there is none."""
    if value is None:
        return None
    bounds = "" if math.isinf(low) else f" from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(field, f"expected a number{bounds}, got {kind(value)}")
    if not (abs(value) < 1e300 and math.isfinite(value) and low <= value <= high):
        raise Malformed(field, f"expected a finite number{bounds}, got {str(value)[:20]}")
    return float(value)


def index(value: object, field: str, count: int) -> int:
    """A whole number from 0 to count - 1."""
    found = whole(value)
    if found is None or not 0 <= found < count:
        got = str(value)[:20] if kind(value) == "a number" else kind(value)
        raise Malformed(field, f"expected a whole number from 0 to {count - 1}, got {got}")
    return found


def whole(value: object) -> int | None:
    """A whole number, also one written as 2.0: tables with gaps have their numbers so. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


def many(value: object, field: str, least: int = 2) -> list[Any]:
    """A list of at least so many elements."""
    if not isinstance(value, list):
        raise Malformed(field, f"expected a list, got {kind(value)}")
    if len(value) < least:
        raise Malformed(field, f"expected at least {least} answers, got {len(value)}")
    return value
