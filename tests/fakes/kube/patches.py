"""The three patches that are no apply: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch. Pure."""

from __future__ import annotations

from typing import Any

from tests.fakes.kube.errors import ApiError, bad_request
from tests.fakes.kube.shapes import ANY, Shape

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_DIRECTIVES = ("$patch", "$retainKeys", "$setElementOrder/", "$deleteFromPrimitiveList/")


def merge_patched(value: Any, patch: Any) -> Any:
    """null takes away, objects are joined, all else is replaced."""
    if not isinstance(patch, dict):
        return patch
    found = dict(value) if isinstance(value, dict) else {}
    for name, item in patch.items():
        if item is None:
            found.pop(name, None)
        else:
            found[name] = merge_patched(found.get(name), item)
    return found


def json_patched(value: Any, operations: list[dict[str, Any]]) -> Any:
    """ApiError 422 where an operation cannot be carried out."""
    for operation in operations:
        try:
            value = _operated(value, operation)
        except (KeyError, IndexError, ValueError, TypeError) as wrong:
            words = f"the server rejected our request due to an error in our request: {operation} {wrong}"
            raise ApiError(422, "Invalid", words) from wrong
    return value


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"no pointer: {text}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _operated(value: Any, operation: dict[str, Any]) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _placed(value, path, operation["value"], insert=True)
        case "replace":
            _read(value, path)
            return _placed(value, path, operation["value"], insert=False)
        case "remove":
            return _removed(value, path)
        case "test":
            if _read(value, path) != operation["value"]:
                raise ValueError("test failed")
            return value
        case "copy":
            return _placed(value, path, _read(value, _pointer(operation["from"])), insert=True)
        case "move":
            source = _pointer(operation["from"])
            return _placed(_removed(value, source), path, _read(value, source), insert=True)
    raise ValueError("unknown operation")


def _read(value: Any, path: list[str]) -> Any:
    for part in path:
        value = value[_index(value, part)] if isinstance(value, list) else value[part]
    return value


def _index(value: list[Any], part: str, *, end: bool = False) -> int:
    if end and part == "-":
        return len(value)
    place = int(part)
    if not 0 <= place < len(value) + end:
        raise IndexError(part)
    return place


def _placed(value: Any, path: list[str], item: Any, *, insert: bool) -> Any:
    if not path:
        return item
    part, *rest = path
    if isinstance(value, list):
        found = list(value)
        if rest:
            place = _index(value, part)
            found[place] = _placed(value[place], rest, item, insert=insert)
        elif insert:
            found.insert(_index(value, part, end=True), item)
        else:
            found[_index(value, part)] = item
        return found
    return value | {part: _placed(value[part], rest, item, insert=insert) if rest else item}


def _removed(value: Any, path: list[str]) -> Any:
    part, *rest = path
    found = list(value) if isinstance(value, list) else dict(value)
    place: Any = _index(value, part) if isinstance(value, list) else part
    if rest:
        found[place] = _removed(value[place], rest)
    else:
        del found[place]
    return found


def strategic_patched(shape: Shape, value: Any, patch: Any) -> Any:
    """As a merge patch, but lists with a merge key are joined by it, and `$` directives are obeyed."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "delete":
        return None
    if patch.get("$patch") == "replace":
        return _plain(patch)
    found = dict(value) if isinstance(value, dict) else {}
    if "$retainKeys" in patch:
        found = {name: item for name, item in found.items() if name in patch["$retainKeys"]}
    for name, item in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            found[field] = [each for each in found.get(field, []) if each not in item]
    for name, item in patch.items():
        if name.startswith(_DIRECTIVES):
            continue
        if item is None or (isinstance(item, dict) and item.get("$patch") == "delete"):
            found.pop(name, None)
        else:
            order = patch.get(f"$setElementOrder/{name}")
            found[name] = _strategic_field(shape.field(name) or ANY, found.get(name), item, order)
    return found


def _plain(patch: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in patch.items() if not name.startswith(_DIRECTIVES)}


def _strategic_field(shape: Shape, value: Any, item: Any, order: list[Any] | None) -> Any:
    merges = "merge" in shape.schema.get("x-kubernetes-patch-strategy", "").split(",")
    if not isinstance(item, list) or not merges:
        return strategic_patched(shape, value, item)
    key = shape.schema.get("x-kubernetes-patch-merge-key")
    current = value if isinstance(value, list) else []
    if key is None:
        found = [*current, *(each for each in item if each not in current)]
        return _ordered(found, order, lambda each: each)
    found = _merged_items(shape, current, item, key)
    wanted = None if order is None else [each[key] for each in order]
    return _ordered(found, wanted, lambda each: each.get(key))


def _merged_items(shape: Shape, current: list[Any], items: list[Any], key: str) -> list[Any]:
    if any(isinstance(each, dict) and each.get("$patch") == "replace" for each in items):
        return [each for each in items if "$patch" not in each]
    found = {each.get(key): each for each in current}
    for each in items:
        if key not in each:
            raise bad_request(f"map: {each} does not contain declared merge key: {key}")
        if each.get("$patch") == "delete":
            found.pop(each[key], None)
        else:
            found[each[key]] = strategic_patched(shape.items, found.get(each[key]), each)
    return list(found.values())


def _ordered(items: list[Any], order: list[Any] | None, key: Any) -> list[Any]:
    """In that order; what it does not name keeps its place at the end."""
    if order is None:
        return items
    rank = {str(name): place for place, name in enumerate(order)}
    return sorted(items, key=lambda each: rank.get(str(key(each)), len(rank)))
