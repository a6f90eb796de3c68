"""Owns the json rule: whether the completion is JSON, and fits a schema. Never fetches what a schema refers to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput
from services.common.rules.base import check_length, package_of, rule_digest
from services.common.rules.bounded_regex import BoundedPattern

MAX_CHARACTERS = 200_000
MAX_DEPTH = 100
# Always matches from a quote on, to the end if need be: a search that failed would begin again at each quote.
_STRINGS = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[{\]}]")


class JsonRule:
    """1 where the completion, white space around it aside, is JSON (RFC 8259) and valid against the schema, else 0.

    schema: a file with a JSON schema, draft as its "$schema" says, 2020-12 without. NaN and Infinity are no
    JSON. JSON more than 100 levels deep is an error: whether a schema fits it would depend on the stack.
    """

    def __init__(self, *, schema: str = "") -> None:
        self._validator = _validator(schema) if schema else None
        self._untried: tuple[type[Exception], ...] = (RecursionError, ArithmeticError)
        if schema:
            self._untried += (package_of("json", "referencing.exceptions", "jsonschema").Unresolvable,)
        content = None if self._validator is None else self._validator.schema
        self.name = f"json:schema={schema}" if schema else "json"
        self.digest = rule_digest("json", 1, schema=content)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """1 or 0."""
        check_length(completion, MAX_CHARACTERS)
        _check_depth(completion)
        try:
            value = json.loads(completion, parse_constant=_refuse, parse_int=_whole)
        except (ValueError, RecursionError):
            return 0.0
        if self._validator is None:
            return 1.0
        try:
            return float(self._validator.is_valid(value))
        except self._untried as error:
            raise InvalidInput(f"json rule: the schema cannot be tried on this completion: {error}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _whole(text: str) -> int | float:
    """Python refuses to read integers of more than 4,300 digits; JSON has no such limit."""
    return int(text) if len(text) < 4000 else float(text)


def _check_depth(text: str) -> None:
    """Counts brackets outside of strings, before the parser goes down them."""
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidInput(
                f"json rule: the completion is nested more than {MAX_DEPTH} levels deep",
                {"completion": f"at most {MAX_DEPTH} levels"},
            )


def _validator(path: str) -> Any:
    jsonschema = package_of("json", "jsonschema", "jsonschema")
    referencing = package_of("json", "referencing", "jsonschema")
    try:
        schema = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, AttributeError, jsonschema.SchemaError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise InvalidInput(f"json rule: {path} is no JSON schema: {reason}", {"schema": "a file"}) from None
    if {"unevaluatedProperties", "patternProperties"} <= _keywords(schema):
        raise InvalidInput(
            f"json rule: {path} has unevaluatedProperties beside patternProperties, which cannot be bounded here",
            {"schema": "one of the two"},
        )
    bounded = jsonschema.validators.extend(kind, _BOUNDED)
    # An empty registry: a "$ref" that leaves the file is an error, never a request to somewhere.
    return bounded(schema, registry=referencing.Registry())


def _keywords(schema: Any) -> set[str]:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = set(schema) if isinstance(schema, dict) else set()
    return found.union(*(_keywords(each) for each in inner))


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Exception]:
    if validator.is_type(instance, "string") and not _matches([pattern], instance):
        yield _invalid("pattern")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> Iterator[Exception]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for name in instance:
                if _matches([pattern], name):
                    yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _additional(validator: Any, subschema: Any, instance: Any, schema: Any) -> Iterator[Exception]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    for name in instance:
        if name not in known and not _matches(patterns, name):
            yield from validator.descend(instance[name], subschema, path=name)


def _unique_items(validator: Any, wanted: bool, instance: Any, _schema: Any) -> Iterator[Exception]:
    if wanted and validator.is_type(instance, "array"):
        seen = {json.dumps(_plain(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield _invalid("uniqueItems")


# jsonschema's own checks of these: a row can make the patterns exponential and uniqueItems quadratic.
_BOUNDED = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "uniqueItems": _unique_items,
}


def _matches(patterns: Iterable[str], text: str) -> bool:
    return any(BoundedPattern(pattern, what="json rule").search(text) for pattern in patterns)


def _plain(value: Any) -> Any:
    """1.0 and 1 are the same number in JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _invalid(keyword: str) -> Exception:
    error: Exception = package_of("json", "jsonschema", "jsonschema").ValidationError(keyword)
    return error
