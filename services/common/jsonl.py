"""Reading JSON lines: every mistake names file and line. Knows no schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput, NotFound

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for each line that is not blank; a byte order mark before the first one is no text.

    Lines end at a newline and nowhere else: str.splitlines() would also cut inside a string at U+2028, which
    models do write. Raises NotFound, or InvalidInput for text that is no UTF-8, no JSON, no object, or has escapes that
    stand for no character.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _object(f"{path}:{number}", line)


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # brackets within brackets, thousands of them
        raise InvalidInput(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InvalidInput(f"{place}: expected an object, got {type(row).__name__}")
    if _SURROGATE.search(line) and not _is_unicode(row):
        raise InvalidInput(
            f"{place}: a text has half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        )
    return row


def _is_unicode(row: dict[str, Any]) -> bool:
    """Whether all texts can be written as UTF-8; tokenizers take no others."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
