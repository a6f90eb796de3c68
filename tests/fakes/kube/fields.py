"""Sets of fields: paths as in fieldsV1 ("f:spec", 'k:{"name":"a"}', 'v:"x"'), so that ownership is set algebra. Pure.

value ──field_set──▶ what it states        old, new ──compare──▶ added, removed, modified
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.kube.shapes import ANY, Shape

Path = tuple[str, ...]
Fields = frozenset[Path]
_MISSING: Any = object()


class NotOfType(Exception):
    """A value that the type cannot hold; the message begins with the field's path."""


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def item_key(shape: Shape, item: Any, path: Path = ()) -> str:
    """The path element of an element of a set or map list."""
    if shape.list_type == "set":
        return f"v:{_compact(item)}"
    if not isinstance(item, dict):
        raise NotOfType(f"{path_text(path)}: associative list with keys may not have non-map elements")
    keys = {}
    for key in shape.keys:
        keys[key] = item.get(key, shape.key_default(key))
        if keys[key] is None:
            why = f'element that omits key field "{key}" (and doesn\'t have default value)'
            raise NotOfType(f"{path_text(path)}: associative list with keys has an {why}")
    return f"k:{_compact(keys)}"


def keyed(shape: Shape, items: Iterable[Any], path: Path = (), *, once: bool = False) -> dict[str, Any]:
    """Elements of a set or map list by path element, in their order; `once`: a second of the same is an error."""
    found: dict[str, Any] = {}
    for item in items:
        key = item_key(shape, item, path)
        if once and key in found:
            raise NotOfType(f"{path_text(path)}: duplicate entries for key {path_text((key,))}")
        found.setdefault(key, item)
    return found


def is_leaf(shape: Shape, value: Any) -> bool:
    """Whether a value is owned and replaced as a whole."""
    if isinstance(value, dict):
        return shape.atomic_object or not value
    if isinstance(value, list):
        return shape.list_type == "atomic"
    return True


def field_set(shape: Shape, value: Any) -> Fields:
    """What an applied value states: leaves, and elements of maps and lists themselves."""
    found: set[Path] = set()
    _collect(shape, value, (), found)
    return frozenset(found)


def _collect(shape: Shape, value: Any, path: Path, found: set[Path]) -> None:
    if is_leaf(shape, value):
        if path:
            found.add(path)
    elif isinstance(value, dict):
        for name, item in value.items():
            below = (*path, f"f:{name}")
            inner = shape.field(name)
            if inner is None:
                raise NotOfType(f"{path_text(below)}: field not declared in schema")
            _collect(inner, item, below, found)
            if not shape.declares(name):
                found.add(below)
    else:
        for key, item in keyed(shape, value, path, once=True).items():
            _collect(shape.items, item, (*path, key), found)
            found.add((*path, key))


@dataclass(slots=True)
class Changes:
    """What a write did. A container that is new or gone counts itself, beside what is in it."""

    added: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)


def compare(shape: Shape, old: Any, new: Any) -> Changes:
    """How `new` differs from `old`."""
    found = Changes()
    _compare(shape, old, new, (), found)
    return found


def _compare(shape: Shape, old: Any, new: Any, path: Path, found: Changes) -> None:
    if old is new or (old is not _MISSING and new is not _MISSING and old == new):
        return
    if old is _MISSING or new is _MISSING:
        if path:
            (found.added if old is _MISSING else found.removed).add(path)
    elif not _comparable(shape, old, new):
        found.modified.add(path)
        return
    for part, inner, before, after in _pairs(shape, old, new, path):
        _compare(inner, before, after, (*path, part), found)


def _comparable(shape: Shape, old: Any, new: Any) -> bool:
    """Whether both are containers of one kind whose contents have owners of their own."""
    if isinstance(old, dict) and isinstance(new, dict):
        return not shape.atomic_object
    return isinstance(old, list) and isinstance(new, list) and shape.list_type != "atomic"


def _pairs(shape: Shape, old: Any, new: Any, path: Path) -> Iterator[tuple[str, Shape, Any, Any]]:
    """Each part of either with its value in both."""
    either = new if old is _MISSING else old
    if isinstance(either, dict) and not shape.atomic_object:
        before, after = (side if side is not _MISSING else {} for side in (old, new))
        for name in before.keys() | after.keys():
            inner = shape.field(name) or ANY
            yield f"f:{name}", inner, before.get(name, _MISSING), after.get(name, _MISSING)
    elif isinstance(either, list) and shape.list_type != "atomic":
        left, right = (keyed(shape, side if side is not _MISSING else [], path) for side in (old, new))
        for key in left.keys() | right.keys():
            yield key, shape.items, left.get(key, _MISSING), right.get(key, _MISSING)


def with_parents(shape: Shape, fields: Iterable[Path]) -> Fields:
    """The set with all declared fields on the way: who states spec.a.b also holds spec and spec.a there."""
    found: set[Path] = set()
    shapes: dict[Path, Shape] = {(): shape}
    for path in fields:
        found.add(path)
        at = shape
        for depth, part in enumerate(path[:-1], 1):
            prefix = path[:depth]
            if prefix not in shapes:
                if part.startswith("f:") and at.declares(part[2:]):
                    found.add(prefix)
                shapes[prefix] = (at.field(part[2:]) or ANY) if part.startswith("f:") else at.items
            at = shapes[prefix]
    return frozenset(found)


def to_v1(fields: Iterable[Path]) -> dict[str, Any]:
    """As in managedFields: nested, "." for a container that is a member itself."""
    found: dict[str, Any] = {}
    paths = sorted(fields)
    inner = {path[:depth] for path in paths for depth in range(1, len(path))}
    for path in paths:
        at = found
        for part in path:
            at = at.setdefault(part, {})
        if path in inner:
            at["."] = {}
    return found


def from_v1(tree: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths of a fieldsV1."""
    for part, below in tree.items():
        if part == ".":
            yield path
        elif below:
            yield from from_v1(below, (*path, part))
        else:
            yield (*path, part)


def path_text(path: Path) -> str:
    """As people read it: .spec.containers[name="a"].image"""
    return "".join(_part_text(part) for part in path)


def _part_text(part: str) -> str:
    kind, _, rest = part.partition(":")
    if kind == "f":
        return f".{rest}"
    if kind == "k":
        return "[" + ",".join(f"{key}={_compact(value)}" for key, value in json.loads(rest).items()) + "]"
    return f"[={rest}]"
