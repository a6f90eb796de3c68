"""What an API server does with an object of a CRD: defaults, schema, CEL rules. For tests; knows no kind of ours.

CEL is evaluated by common-expression-language. Transition rules (oldSelf) are asked only where there was a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import cel

from orchestrator.cluster.schema import with_defaults

Schema = dict[str, Any]
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip


def admit(crd: dict[str, Any], value: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object as it would be stored. Raises ValueError with all that is wrong, one a line."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    stored: dict[str, Any] = with_defaults(schema, value)
    before = None if old is None else with_defaults(schema, old)
    found = [*violations(schema, stored), *broken_rules(schema, stored, before)]
    if found:
        raise ValueError("\n".join(found))
    return stored


def violations(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Breaches of the schema without its CEL rules. An unknown field is one (the server prunes it)."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: expected integer or string"
        elif not re.search(schema["pattern"], str(value)):
            yield f"{path}: does not match {schema['pattern']}"
        return
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: expected {kind}"
        return
    yield from _scalar(schema, value, path)
    if isinstance(value, dict):
        yield from _object(schema, value, path)
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
            yield f"{path}: number of items"
        for place, item in enumerate(value):
            yield from violations(schema["items"], item, f"{path}[{place}]")


def _scalar(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: expected one of {schema['enum']}"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
            yield f"{path}: length"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: does not match {schema['pattern']}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))
        outside = not low <= value <= high
        if outside or (schema.get("exclusiveMinimum") and value == low):
            yield f"{path}: out of bounds"


def _object(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-preserve-unknown-fields") or path == ".metadata":
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: required"
    if len(value) > schema.get("maxProperties", 10**9):
        yield f"{path}: number of entries"
    for name, item in value.items():
        below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if below is None:
            yield f"{path}.{name}: unknown field"
        else:
            yield from violations(below, item, f"{path}.{name}")


def broken_rules(schema: Schema, value: Any, old: Any = None, path: str = "") -> Iterator[str]:
    """Messages of the CEL rules that do not hold."""
    for rule in schema.get("x-kubernetes-validations", ()):
        transition = "oldSelf" in rule["rule"]
        if transition and old is None:
            continue
        context = {"self": value} | ({"oldSelf": old} if transition else {})
        if cel.evaluate(rule["rule"], context) is not True:
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, item in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            before = old.get(name) if isinstance(old, dict) else None
            if isinstance(below, dict):
                yield from broken_rules(below, item, before, f"{path}.{name}")
    if isinstance(value, list):
        for item in value:
            yield from broken_rules(schema["items"], item, None, f"{path}[]")
