"""TOML to a validated model, `--set` on top; a mistake is one line: file:line: field: what was expected.

Owns reading and explaining; knows no particular model. Lines are found by `lines.py`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from services.common.errors import ConfigError
from services.common.spec.lines import FieldPath, field_lines, key_on_line

Model = TypeVar("Model", bound=BaseModel)
_SECRET = re.compile(r"url|password|token|secret|key$", re.IGNORECASE)
# A URL that has a user, and a password with it, whatever field it was put into.
_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)
_INDEX = re.compile(r"[0-9]{1,9}")
_MOST_CHARACTERS, _MOST_QUOTED = 1_000, 200
_POSITION = re.compile(
    r"^(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$"
)


def load_toml(
    path: Path | None, model_type: type[Model], overrides: Sequence[str] = (), variables: Sequence[str] = ()
) -> Model:
    """The model that a TOML file describes, `overrides` ("a.b=c", values as in TOML) put on top.

    `variables` ("a.b=NAME") come last: text from the environment, so that a secret stands in no command line.
    Without a path: defaults and what is put on top. Raises ConfigError "file:line: field: what was expected", in one
    line whatever is quoted in it.
    """
    try:
        return _loaded(path, model_type, overrides, variables)
    except ConfigError as error:
        raise ConfigError(_one_line(str(error))) from None


def _loaded(
    path: Path | None, model_type: type[Model], overrides: Sequence[str], variables: Sequence[str]
) -> Model:
    text = "" if path is None else read_text(path)
    source = "configuration" if path is None else str(path)
    data = parse_toml(text, source)
    overridden = [apply_override(data, override) for override in overrides]
    overridden += [apply_variable(data, variable) for variable in variables]
    try:
        return model_type.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, data, text, None if path is None else source, overridden)) from None


def read_text(path: Path) -> str:
    """A configuration file's text. ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The TOML document as dictionaries. ConfigError names the line and key of a syntax error."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _POSITION.match(str(error))
        what = (match["what"] if match else str(error)).rstrip(".")
        line = int(match["line"]) if match and match["line"] else max(len(text.splitlines()), 1)
        column = f" at column {match['column']}" if match and match["column"] else ""
        field = key_on_line(text, line)
        raise ConfigError(
            f"{source}:{line}: {field}: expected valid TOML: {what[:1].lower()}{what[1:]}{column}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: expected TOML that is nested less deeply") from None
    except ValueError as error:  # a number of thousands of digits, a date of month 13
        raise ConfigError(f"{source}: expected valid TOML: {error}") from None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"


def apply_override(data: dict[str, Any], override: str) -> FieldPath:
    """Write one `a.b=c` into the document; its path. A value that is no TOML is taken as a string."""
    name, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {_quoted(override)}: expected field=value, for example server.port=50053")
    return _put(data, name, _value(value.strip()), f"--set {_quoted(override)}")


def apply_variable(data: dict[str, Any], override: str) -> FieldPath:
    """Write one `a.b=NAME` into the document, as the text of the variable of the environment; its path."""
    name, equals, variable = override.partition("=")
    if not equals or not variable:
        raise ConfigError(f"--set-env {override}: expected field=VARIABLE, for example queue.url=QUEUE_URL")
    if variable not in os.environ:
        raise ConfigError(f"--set-env {override}: the variable {variable} is not set")
    return _put(data, name, os.environ[variable], f"--set-env {override}")


def _put(data: dict[str, Any], name: str, value: Any, said: str) -> FieldPath:
    keys = [key.strip() for key in name.split(".")]
    if not all(keys):
        raise ConfigError(f"{said}: expected field=value, for example server.port=50053")
    target: Any = data
    path: list[str | int] = []
    for key in keys[:-1]:
        step = _step(target, key, said)
        path.append(step)
        target = target[step] if isinstance(step, int) else target.setdefault(step, {})
    last = _step(target, keys[-1], said)
    target[last] = value
    return (*path, last)


def _step(target: Any, key: str, said: str) -> str | int:
    if isinstance(target, dict):
        return key
    if isinstance(target, list) and _INDEX.fullmatch(key) and int(key) < len(target):
        return int(key)
    raise ConfigError(f"{said}: {_quoted(key)}: there is no such field")


def _quoted(text: str) -> str:
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}…"


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, KeyError, RecursionError):  # TOMLDecodeError is a ValueError
        return text


def _explain(
    error: ValidationError,
    data: Mapping[str, Any],
    text: str,
    source: str | None,
    overridden: Sequence[FieldPath],
) -> str:
    lines = field_lines(text)
    found: list[tuple[int, str]] = []
    for problem in error.errors(include_url=False):
        path = _path_in(data, problem["loc"])
        field = ".".join(str(part) for part in path) or "configuration"
        expected = _expected(problem, field)
        if any(path[: len(over)] == over or over[: len(path)] == path for over in overridden):
            found.append((0, f"--set {field}: {expected}"))
        elif source is None:
            found.append((0, f"{field}: {expected}"))
        else:
            line = _line(path, lines)
            found.append((line, f"{source}:{line}: {field}: {expected}"))
    found.sort(key=lambda entry: entry[0])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0][1] + more


def _path_in(data: Any, location: Sequence[str | int]) -> FieldPath:
    """The field's path as the file writes it: pydantic gives aliases, and tags of unions that no file has."""
    path: list[str | int] = []
    for position, part in enumerate(location):
        name = _present(data, part)
        if name is not None:
            data = data[name]
            path.append(name)
        elif position == len(location) - 1:
            path.append(_snake(part) if isinstance(part, str) else part)
    return tuple(path)


def _present(data: Any, part: str | int) -> str | int | None:
    if isinstance(data, dict) and isinstance(part, str):
        return next((name for name in (part, _snake(part)) if name in data), None)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return part
    return None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _line(path: FieldPath, lines: Mapping[FieldPath, int]) -> int:
    """The line of the field, or of the nearest thing around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _expected(problem: Any, field: str) -> str:
    kind, message = problem["type"], str(problem["msg"])
    if kind == "missing":
        return "expected a value, none is given"
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind in ("value_error", "assertion_error"):
        return message.split(", ", 1)[-1]
    match = re.match(r"^(\w+) should (be|have|match) (.*)$", message)
    if match:
        word, verb, rest = match.groups()
        middle = {"be": "", "have": f"a {word.lower()} of ", "match": f"a {word.lower()} that matches "}[verb]
        message = f"expected {middle}{re.split(', (?:unable|got) ', rest)[0]}"
    return f"{message}, got {_shown(problem.get('input'), field)}"


def _shown(value: Any, field: str) -> str:
    if _SECRET.search(field.rsplit(".", 1)[-1]) or (isinstance(value, str) and _CREDENTIALS.search(value)):
        return "another value"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
