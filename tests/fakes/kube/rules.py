"""CEL rules of CRDs (x-kubernetes-validations), evaluated by PyPI common-expression-language. Pure.

A rule with oldSelf is asked where there was a value before that is known again: by field or by a map list's key.
Kubernetes' own CEL libraries that the package lacks (quantity, url, format, …) are refused when the CRD is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cel
from cel.stdlib import add_stdlib_to_context

from tests.fakes.kube.errors import Cause
from tests.fakes.kube.schema import ABSENT, correlated, key_of
from tests.fakes.kube.shapes import ANY, Shape

_OLD = re.compile(r"\boldSelf\b")
_REASONS = {"FieldValueInvalid": "Invalid value", "FieldValueForbidden": "Forbidden",
            "FieldValueRequired": "Required value", "FieldValueDuplicate": "Duplicate value"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled."""

    program: Any
    message: str
    message_program: Any
    transition: bool
    optional_old: bool
    reason: str
    field_path: str
    extended: bool


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Any:
    return cel.compile(text)


# Functions that need no library.
_NATIVE = frozenset(
    ("size", "contains", "startsWith", "endsWith", "matches", "string", "int", "double", "type")
)


def _is_extended(program: Any) -> bool:
    """Whether a rule calls a function of the package's library, which costs as much again to bind."""
    named = {name for name in program.functions() if name[0].isalpha()}
    return not named <= _NATIVE


def _rule(entry: dict[str, Any]) -> Rule:
    words = entry.get("messageExpression")
    return Rule(
        program=_compiled(entry["rule"]),
        message=entry.get("message") or f"failed rule: {entry['rule']}",
        message_program=_compiled(words) if words else None,
        transition=bool(_OLD.search(entry["rule"])),
        optional_old=bool(entry.get("optionalOldSelf")),
        reason=entry.get("reason", "FieldValueInvalid"),
        field_path=entry.get("fieldPath", ""),
        extended=bool(words) or _is_extended(_compiled(entry["rule"])),
    )


def rules_of(shape: Shape) -> list[Rule]:
    """Of this node alone. ValueError where one cannot be compiled."""
    found = shape.__dict__.get("_rules")
    if found is None:
        found = [_rule(entry) for entry in shape.schema.get("x-kubernetes-validations", ())]
        shape.__dict__["_rules"] = found
    return list(found)


def has_rules(shape: Shape) -> bool:
    """Whether the type has any, here or below."""
    found = shape.__dict__.get("_has_rules")
    if found is None:
        found = bool(shape.schema.get("x-kubernetes-validations")) or any(
            has_rules(each) for each in _below(shape)
        )
        shape.__dict__["_has_rules"] = found
    return bool(found)


def _below(shape: Shape) -> Iterator[Shape]:
    if shape is ANY:
        return
    for name in shape.properties:
        inner = shape.field(name)
        if inner is not None and not inner.definitions:  # built-in types have no rules
            yield inner
    for inner in (shape.additional, shape.items):
        if inner is not None and inner is not ANY:
            yield inner


def broken_rules(shape: Shape, value: Any, old: Any = ABSENT, path: str = "") -> Iterator[Cause]:
    """The rules that do not hold. What has not changed keeps rules that it broke before, except transitions."""
    if shape is ANY or not has_rules(shape):
        return
    yield from _broken_here(shape, value, old, path)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            inner = shape.field(name)
            if inner is not None:
                below = f"{path}.{name}" if path else name
                yield from broken_rules(inner, item, before.get(name, ABSENT), below)
    elif isinstance(value, list):
        known = correlated(shape, old)
        for place, item in enumerate(value):
            was = known.get(key_of(shape, item), ABSENT) if known else ABSENT
            yield from broken_rules(shape.items, item, was, f"{path}[{place}]")


def _broken_here(shape: Shape, value: Any, old: Any, path: str) -> Iterator[Cause]:
    """Of the rules of this node."""
    unchanged = old is not ABSENT and old == value
    asked = [
        rule
        for rule in rules_of(shape)
        if (rule.transition and (old is not ABSENT or rule.optional_old))
        or not (rule.transition or unchanged)
    ]
    if not asked:
        return
    variables = {"self": as_cel(shape, value)}
    if any(rule.transition for rule in asked):
        before = None if old is ABSENT else as_cel(shape, old)
        variables["oldSelf"] = before
    for rule in asked:
        if rule.optional_old:
            old_self = (
                cel.OptionalValue.none() if old is ABSENT else cel.OptionalValue.of(variables["oldSelf"])
            )
            cause = _broken(rule, variables | {"oldSelf": old_self}, path)
        else:
            cause = _broken(rule, variables, path)
        if cause:
            yield cause


def _broken(rule: Rule, variables: dict[str, Any], path: str) -> Cause | None:
    value = variables["self"]
    context = _context(variables) if rule.extended else variables
    try:
        held = rule.program.execute(context)
        if held is True:
            return None
        message = rule.message_program.execute(context) if rule.message_program else rule.message
    except (KeyError, RuntimeError, TypeError, ValueError) as wrong:
        message = f"rule evaluation error: {wrong}"
    where = f"{path}{rule.field_path}" if path else rule.field_path.lstrip(".")
    kind = next(name for name, types in _KINDS if isinstance(value, types))
    words = f'{_REASONS.get(rule.reason, "Invalid value")}: "{kind}": {message}'
    if rule.reason in ("FieldValueForbidden", "FieldValueRequired"):
        words = f"{_REASONS[rule.reason]}: {message}"
    return Cause(rule.reason, words, where or "<nil>")


_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("object", (dict,)), ("array", (list,)), ("string", (str,)), ("boolean", (bool,)), ("integer", (int,)),
    ("number", (float,)), ("null", (type(None),)),
)  # fmt: skip


def _context(variables: dict[str, Any]) -> Any:
    context = cel.Context(variables)
    add_stdlib_to_context(context)
    return context


def has_numbers(shape: Shape) -> bool:
    """Whether the type has doubles, here or below."""
    found = shape.__dict__.get("_has_numbers")
    if found is None:
        found = shape.types == ("number",) or any(has_numbers(each) for each in _below(shape))
        shape.__dict__["_has_numbers"] = found
    return bool(found)


def as_cel(shape: Shape, value: Any) -> Any:
    """The value with numbers as their type has them: JSON's 1 is a double where a number is meant."""
    if shape is ANY or not has_numbers(shape):
        return value
    if isinstance(value, dict):
        return {name: as_cel(shape.field(name) or ANY, item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_cel(shape.items, item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and shape.types == ("number",):
        return float(value)
    return value


def uncompiled(shape: Shape, path: str) -> Iterator[Cause]:
    """Rules of a CRD's schema that cannot be compiled here."""
    try:
        rules_of(shape)
    except (ValueError, RuntimeError, TypeError) as wrong:
        where = f"{path}.x-kubernetes-validations"
        yield Cause("FieldValueInvalid", f"Invalid value: compilation failed: {wrong}", where)
    for inner in _below(shape):
        yield from uncompiled(inner, path)
