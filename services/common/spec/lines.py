"""On which line of a TOML text a field stands. A small scan, not a parser: it only helps to word errors."""

from __future__ import annotations

import re

FieldPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def field_lines(text: str) -> dict[FieldPath, int]:
    """Line numbers, from 1, of every table and key; elements of arrays of tables have an index."""
    lines: dict[FieldPath, int] = {}
    counts: dict[FieldPath, int] = {}
    table: FieldPath = ()
    open_string = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if open_string:
            open_string = "" if open_string in line else open_string
            continue
        header = _HEADER.match(line)
        if header:
            table = _table_path(header[2], header[1] == "[[", counts)
            lines.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key:
            _record(table + _parts(key[1]), number, lines)
            open_string = _left_open(line[key.end() :])
    return lines


def key_on_line(text: str, number: int) -> str:
    """The dotted key that a line is about: its own, or the last one above it; its table; else "document"."""
    lines = text.splitlines()
    table = ""
    key = ""
    for line in lines[:number]:
        header = re.match(r"^\s*\[\[?\s*([^\[\]]*)", line)
        found = _KEY.match(line) or re.match(r"^\s*([A-Za-z0-9_-]+)\s*(?:\S.*)?$", line)
        if header and not _KEY.match(line):
            table, key = header[1].strip(), ""
        elif found:
            key = found[1]
    return ".".join(part for part in (table, key) if part) or "document"


def _table_path(name: str, is_array: bool, counts: dict[FieldPath, int]) -> FieldPath:
    path: FieldPath = ()
    parts = _parts(name)
    for position, part in enumerate(parts):
        path = (*path, part)
        if is_array and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _parts(name: str) -> FieldPath:
    return tuple(part.strip("\"'") for part in _PART.findall(name))


def _record(path: FieldPath, number: int, lines: dict[FieldPath, int]) -> None:
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], number)


def _left_open(value: str) -> str:
    """The triple quote that a value opens and does not close on its line."""
    for quote in ('"""', "'''"):
        if value.count(quote) % 2 == 1:
            return quote
    return ""
