"""Changes to a keys file: text in, text out, comments kept; and its safe replacement on disk. Knows no service."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from services.common.access.keys import id_of
from services.common.access.keys_file import KeyEntry, KeysFile
from services.common.errors import ConfigError, NotFound
from services.common.spec.load import parse_toml, read_text

# A header, and the comment right above it.
_TABLE_HEADER = re.compile(r"^(?:[ \t]*#[^\n]*\n)*[ \t]*\[", re.MULTILINE)
_KEYS_HEADER = re.compile(r"^[ \t]*\[\[\s*keys\s*\]\]", re.MULTILINE)
_OWN_MODES = 0o640


def with_key(text: str, entry: KeyEntry) -> str:
    """The file's text with one more key at its end."""
    lines = [
        "[[keys]]",
        f"name = {json.dumps(entry.name)}",
        f"hash = {json.dumps(entry.hash)}",
        f"scopes = {json.dumps(list(entry.scopes))}",
    ]
    if entry.models:
        lines.append(f"models = {json.dumps(list(entry.models))}")
    if entry.rows_per_minute:
        lines.append(f"rows_per_minute = {entry.rows_per_minute}")
    if entry.expires is not None:
        lines.append(f"expires = {entry.expires.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    before = text.rstrip("\n")
    return (before + "\n\n" if before else "") + "\n".join(lines) + "\n"


def without_keys(text: str, gone: Callable[[KeyEntry], bool]) -> tuple[str, int]:
    """The text without the keys for which `gone` holds, and how many those were."""
    entries = parse_keys(text).keys
    starts = [match.start() for match in _TABLE_HEADER.finditer(text)]
    pieces = [text[: starts[0]]] if starts else [text]
    number = removed = 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=False):
        piece = text[start:end]
        if _KEYS_HEADER.search(piece):
            number += 1
            if number <= len(entries) and gone(entries[number - 1]):
                removed += 1
                continue
        pieces.append(piece)
    kept = "".join(pieces).lstrip("\n")
    if parse_keys(kept).keys != tuple(entry for entry in entries if not gone(entry)):
        raise ConfigError("the keys file is written in a way that is not understood here; edit it by hand")
    return kept, removed


def parse_keys(text: str, source: str = "keys file") -> KeysFile:
    """The validated content of a text that is not on disk yet. ConfigError, one line."""
    data = parse_toml(text, source)
    try:
        parsed = KeysFile.model_validate(data)
    except ValidationError as error:
        what = str(error.errors(include_input=False)[0]["msg"]).split(", ", 1)[-1]
        raise ConfigError(f"{source}: {what}") from None
    parsed.table()
    return parsed


def revoked(name: str, key_id: str = "") -> Callable[[str], str]:
    """A change that takes away all keys of a name, or only the one with this id. NotFound where there is none."""

    def change(text: str) -> str:
        kept, removed = without_keys(
            text, lambda entry: entry.name == name and (not key_id or id_of(entry.hash) == key_id)
        )
        if not removed:
            raise NotFound(f"there is no key {name}" + (f" with the id {key_id}" if key_id else ""))
        return kept

    return change


def added(entry: KeyEntry) -> Callable[[str], str]:
    """A change that adds a key."""
    return lambda text: with_key(text, entry)


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Apply a change to the file, or to an empty text where there is none; a reader sees old or new, whole.

    A new file is the owner's alone (0600). An existing one keeps its owner, and its group's right to read.
    """
    path = path.resolve()
    with _locked(path.parent):
        changed = change(read_text(path) if path.exists() else "")
        parse_keys(changed, str(path))
        _replace(path, changed)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two edits at once would lose one of them."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{folder}: {(error.strerror or 'cannot be read').lower()}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _like_before(path, file.fileno())
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be written').lower()}") from None
    finally:
        with suppress(OSError):
            aside.unlink()


def _like_before(path: Path, descriptor: int) -> None:
    # The service runs as another user than whoever edits, often: it must still be able to read.
    with suppress(FileNotFoundError):
        before = path.stat()
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, 0o600 | before.st_mode & _OWN_MODES)


def now() -> datetime:
    """The time in UTC, without fractions of a second."""
    return datetime.now(UTC).replace(microsecond=0)
