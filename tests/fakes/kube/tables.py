"""Tables, as `kubectl get` asks for them: a kind's printer columns, and for built-in kinds name and age. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tests.fakes.kube.resources import Resource
from tests.fakes.kube.store import Object

_NAME = {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}
_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
# A field, a field with escaped dots, or the element of a list that has a value in a field.
_STEP = re.compile(
    r"""\.(?P<field>(?:[^.\[\\]|\\.)+)|\[\?\(@\.(?P<key>\w+)\s*==\s*["'](?P<value>[^"']*)["']\)\]"""
)


def table(resource: Resource, objects: Iterable[Object], meta: Object, now: str) -> Object:
    """A Table with a row for each object."""
    columns = resource.columns or [_AGE]
    shown = [
        {"format": "", "description": "", "priority": 0}
        | {
            name: column[name]
            for name in ("name", "type", "format", "description", "priority")
            if name in column
        }
        for column in columns
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": [_NAME, *shown],
        "rows": [{"cells": _cells(columns, obj, now), "object": _partial(obj)} for obj in objects],
    }


def _partial(obj: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _cells(columns: list[Object], obj: Object, now: str) -> list[Any]:
    found = [obj["metadata"]["name"]]
    for column in columns:
        value = at_json_path(obj, column["jsonPath"])
        is_date = column["type"] == "date" and isinstance(value, str)
        found.append(age(value, now) if is_date and isinstance(value, str) else value)
    return found


def at_json_path(obj: Any, path: str) -> Any:
    """What stands at a path of fields and `[?(@.type=="Ready")]`; None where nothing does."""
    value = obj
    for step in _STEP.finditer(path):
        if step["field"] is not None:
            value = value.get(step["field"].replace("\\", "")) if isinstance(value, dict) else None
        else:
            items = value if isinstance(value, list) else []
            value = next((each for each in items if each.get(step["key"]) == step["value"]), None)
    return value


def age(since: str, now: str) -> str:
    """As people read it: 5s, 3m10s, 2h, 4d."""
    seconds = int((datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds())
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 10:
        rest = seconds % 60
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    return f"{hours}h" if days < 2 else f"{days}d"
