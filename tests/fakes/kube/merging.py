"""Values: what comes of a live and an applied one, and of a value without some of its fields. Pure, copies on write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fakes.kube.fields import Fields, Path, is_leaf, item_key, keyed
from tests.fakes.kube.shapes import ANY, Shape

_ABSENT: Any = object()


def merge(shape: Shape, live: Any, applied: Any) -> Any:
    """`applied` laid over `live`: maps and keyed lists are joined, all else is replaced."""
    if isinstance(live, dict) and isinstance(applied, dict) and not shape.atomic_object:
        return _merged_object(shape, live, applied)
    if isinstance(live, list) and isinstance(applied, list) and shape.list_type != "atomic":
        left, right = keyed(shape, live), keyed(shape, applied)
        return [
            merge(shape.items, left[key], right[key])
            if key in left and key in right
            else right.get(key, left.get(key))
            for key in merged_order(list(left), list(right))
        ]
    return applied


def _merged_object(shape: Shape, live: dict[str, Any], applied: dict[str, Any]) -> dict[str, Any]:
    found = dict(live)
    for name, item in applied.items():
        before = live.get(name, _ABSENT)
        found[name] = item if before is _ABSENT else merge(shape.field(name) or ANY, before, item)
    return found


def merged_order(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Of two orders: the right one holds among its own; what only the left has stays between its neighbours."""
    in_left, in_right = set(left), set(right)
    shared = [key for key in right if key in in_left]
    found: list[str] = []
    taken = 0  # of the right
    for key in left:
        if key not in in_right:
            found.append(key)
        elif shared and key == shared[0]:
            through = right.index(key) + 1
            found += right[taken:through]
            taken = through
            shared.pop(0)
    return [*found, *right[taken:]]


def without(shape: Shape, value: Any, doomed: Fields) -> Any:
    """The value less those fields; a container that only then is empty goes too, unless it is the whole."""
    tree: dict[str, Any] = {}
    for path in doomed:
        at = tree
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at.setdefault(path[-1], {})[""] = {}  # a mark that no path element has: the field itself goes
    result = _pruned(shape, value, tree)
    return {} if result is _ABSENT else result


def _pruned(shape: Shape, value: Any, tree: dict[str, Any]) -> Any:
    if not tree or is_leaf(shape, value):
        return value
    found: Any
    if isinstance(value, dict):
        found = {}
        for name, item in value.items():
            kept = _kept(shape.field(name) or ANY, item, tree.get(f"f:{name}"))
            if kept is not _ABSENT:
                found[name] = kept
    else:
        each = (_kept(shape.items, item, tree.get(item_key(shape, item))) for item in value)
        found = [item for item in each if item is not _ABSENT]
    return found if found or not value else _ABSENT


def _kept(shape: Shape, item: Any, tree: dict[str, Any] | None) -> Any:
    if tree is None:
        return item
    return _ABSENT if "" in tree else _pruned(shape, item, tree)


def at_path(value: Any, shape: Shape, path: Path) -> Any:
    """What stands there; KeyError where nothing does."""
    for part in path:
        if part.startswith("f:"):
            value, shape = value[part[2:]], shape.field(part[2:]) or ANY
        else:
            value, shape = keyed(shape, value)[part], shape.items
    return value
