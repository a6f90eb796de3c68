"""Objects in another form than they are kept in: another version of a CRD, and the two kinds of Event. Pure."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.kube.resources import Resource
from tests.fakes.kube.store import Object, Stored

# events.k8s.io/v1 against v1, which Events are kept as.
_EVENT = {
    "note": "message", "regarding": "involvedObject", "reportingController": "reportingComponent",
    "deprecatedSource": "source", "deprecatedCount": "count", "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
}  # fmt: skip
_EVENT_BACK = {kept: shown for shown, kept in _EVENT.items()}


def shown(resource: Resource, obj: Object) -> Object:
    """A kept object as a resource has it."""
    if obj.get("apiVersion") == resource.api_version:
        return obj
    if resource.stored_as:
        obj = _renamed(obj, _EVENT_BACK)
    return obj | {"apiVersion": resource.api_version}


def raw(resource: Resource, stored: Stored) -> bytes:
    """The same as JSON."""
    if stored.obj.get("apiVersion") == resource.api_version:
        return stored.raw
    return json.dumps(shown(resource, stored.obj), separators=(",", ":"), ensure_ascii=False).encode()


def kept(resource: Resource, body: Any) -> Any:
    """What was sent, in the form that is kept."""
    if not resource.stored_as or not isinstance(body, dict):
        return body
    return _renamed(body, _EVENT) | {"apiVersion": "v1"}


def _renamed(obj: Object, names: dict[str, str]) -> Object:
    return {names.get(name, name): value for name, value in obj.items()}
