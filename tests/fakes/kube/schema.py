"""Values against their type: unknown fields, defaults, bounds. Pure, copies on write.

Errors are worded as the API server words them. On an update what has not changed is not looked at again (since
Kubernetes 1.30), so that a rule that gets stricter does not lock objects that break it already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tests.fakes.kube.errors import Cause, invalid_value, required_value, shown
from tests.fakes.kube.fields import NotOfType, item_key, keyed
from tests.fakes.kube.shapes import ANY, Shape

ABSENT: Any = object()
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def pruned(shape: Shape, value: Any, path: str, unknown: list[str]) -> Any:
    """Without fields that the type does not have, whose paths are added to `unknown`, and without nulls."""
    if shape is ANY:
        return value
    if isinstance(value, dict):
        return _pruned_object(shape, value, path, unknown)
    if isinstance(value, list):
        found = [pruned(shape.items, item, f"{path}[{place}]", unknown) for place, item in enumerate(value)]
        return value if all(new is old for new, old in zip(found, value, strict=True)) else found
    return value


def _pruned_object(shape: Shape, value: dict[str, Any], path: str, unknown: list[str]) -> dict[str, Any]:
    found, changed = {}, False
    for name, item in value.items():
        below = f"{path}.{name}" if path else name
        inner = shape.field(name)
        if inner is None:
            unknown.append(below)
            changed = True
            continue
        if item is None and not inner.schema.get("nullable") and inner is not ANY:
            changed = True
            continue
        found[name] = pruned(inner, item, below, unknown)
        changed = changed or found[name] is not item
    return found if changed else value


def defaulted(shape: Shape, value: Any) -> Any:
    """With the defaults of the schema where an object is there to hold them."""
    if isinstance(value, dict):
        found = value
        for name, inner in shape.properties.items():
            if name not in value and "default" in inner:
                found = found if found is not value else dict(value)
                found[name] = inner["default"]
        for name, item in list(found.items()):
            below = shape.field(name)
            new = item if below is None or below is ANY else defaulted(below, item)
            if new is not item:
                found = found if found is not value else dict(value)
                found[name] = new
        return found
    if isinstance(value, list):
        items = [defaulted(shape.items, item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def violations(shape: Shape, value: Any, old: Any = ABSENT, path: str = "") -> Iterator[Cause]:
    """All that is wrong with a value, apart from CEL rules."""
    if shape is ANY or (old is not ABSENT and value == old):
        return
    schema = shape.schema
    wrong = _wrong_type(shape, value, path)
    if wrong:
        yield wrong
        return
    if isinstance(value, bool) or value is None:
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(shown(each) for each in schema["enum"])
        yield Cause(
            "FieldValueNotSupported",
            f"Unsupported value: {shown(value)}: supported values: {supported}",
            path,
        )
    if isinstance(value, str):
        yield from _string(schema, value, path)
    elif isinstance(value, int | float):
        yield from _number(schema, value, path)
    elif isinstance(value, dict):
        yield from _object(shape, value, old, path)
    elif isinstance(value, list):
        yield from _list(shape, value, old, path)


def _wrong_type(shape: Shape, value: Any, path: str) -> Cause | None:
    if shape.schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, int | str) and not isinstance(value, bool):
            return None
        return _type_error(value, path, "integer,string")
    if not shape.types or (value is None and shape.schema.get("nullable")):
        return None
    for name in shape.types:
        if isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)):
            return None
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return None
    return _type_error(value, path, shape.types[0])


def _type_error(value: Any, path: str, wanted: str) -> Cause:
    name = next(name for name, types in reversed(_TYPES.items()) if isinstance(value, types))
    why = f'{path} in body must be of type {wanted}: "{name}"'
    return Cause("FieldValueTypeInvalid", f'Invalid value: "{name}": {why}', path)


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    # RE2's \z is Python's \Z; the rest of what CRDs use is the same in both.
    return re.compile(text.replace(r"\z", r"\Z"))


def _string(schema: dict[str, Any], value: str, path: str) -> Iterator[Cause]:
    if len(value) > schema.get("maxLength", len(value)):
        yield Cause("FieldValueTooLong", f"Too long: may not be more than {schema['maxLength']} bytes", path)
    if len(value) < schema.get("minLength", 0):
        yield invalid_value(
            path, value, f"{path} in body should be at least {schema['minLength']} chars long"
        )
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield invalid_value(path, value, f"{path} in body should match '{schema['pattern']}'")


def _number(schema: dict[str, Any], value: float, path: str) -> Iterator[Cause]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (schema.get("exclusiveMinimum") is True and value == low)):
        words = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield invalid_value(path, value, f"{path} in body should be {words} {low}")
    if high is not None and (value > high or (schema.get("exclusiveMaximum") is True and value == high)):
        words = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield invalid_value(path, value, f"{path} in body should be {words} {high}")
    step = schema.get("multipleOf")
    if step and value % step:
        yield invalid_value(path, value, f"{path} in body should be a multiple of {step}")


def _object(shape: Shape, value: dict[str, Any], old: Any, path: str) -> Iterator[Cause]:
    before = old if isinstance(old, dict) else {}
    for name in shape.schema.get("required", ()):
        if name not in value:
            yield required_value(f"{path}.{name}" if path else name)
    most, least = shape.schema.get("maxProperties"), shape.schema.get("minProperties", 0)
    if most is not None and len(value) > most:
        yield Cause("FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items", path)
    if len(value) < least:
        yield invalid_value(path, value, f"{path} in body should have at least {least} properties")
    for name, item in value.items():
        inner = shape.field(name)
        if inner is not None:
            below = f"{path}.{name}" if path else name
            yield from violations(inner, item, before.get(name, ABSENT), below)


def _list(shape: Shape, value: list[Any], old: Any, path: str) -> Iterator[Cause]:
    most, least = shape.schema.get("maxItems"), shape.schema.get("minItems", 0)
    if most is not None and len(value) > most:
        yield Cause("FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items", path)
    if len(value) < least:
        yield invalid_value(path, len(value), f"{path} in body should have at least {least} items")
    yield from _doubles(shape, value, path)
    before = correlated(shape, old)
    for place, item in enumerate(value):
        was = before.get(key_of(shape, item), ABSENT) if before else ABSENT
        yield from violations(shape.items, item, was, f"{path}[{place}]")


def _doubles(shape: Shape, value: list[Any], path: str) -> Iterator[Cause]:
    if shape.list_type == "atomic":
        return
    seen = set()
    for place, item in enumerate(value):
        key = key_of(shape, item)
        if key and key in seen:
            named = {name: item.get(name) for name in shape.keys} if isinstance(item, dict) else item
            yield Cause("FieldValueDuplicate", f"Duplicate value: {shown(named)}", f"{path}[{place}]")
        seen.add(key)


def key_of(shape: Shape, item: Any) -> str:
    """An element's key in a map list; empty where it has none."""
    try:
        return item_key(shape, item)
    except NotOfType:
        return ""


def correlated(shape: Shape, old: Any) -> dict[str, Any]:
    """Elements of an old map list by key; of other lists no element is known again."""
    if not isinstance(old, list) or shape.list_type != "map":
        return {}
    try:
        return keyed(shape, old)
    except NotOfType:
        return {}
