"""The scale subresource: an autoscaling/v1 Scale that stands for two numbers and a selector of another object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.fakes.kube import errors
from tests.fakes.kube.resources import Resource, ScalePaths
from tests.fakes.kube.selectors import selector_text
from tests.fakes.kube.store import Object


def at(obj: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at a path; None where nothing does."""
    value: Any = obj
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def with_value(obj: Object, path: tuple[str, ...], value: Any) -> Object:
    """A copy with a value set."""
    name, *rest = path
    return obj | {name: with_value(obj.get(name) or {}, tuple(rest), value) if rest else value}


def scale_of(resource: Resource, obj: Object) -> Object:
    """The Scale of an object."""
    paths = _paths(resource)
    meta = obj["metadata"]
    status: Object = {"replicas": at(obj, paths.status) or 0}
    selector = at(obj, paths.selector) if paths.selector else None
    if selector:
        status["selector"] = selector if isinstance(selector, str) else selector_text(selector)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            name: meta[name]
            for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if name in meta
        },
        "spec": {"replicas": at(obj, paths.spec) or 0},
        "status": status,
    }


def scaled(resource: Resource, obj: Object, scale: Any) -> Object:
    """The object as a Scale wants it. ApiError 422 for a number that is none."""
    number = at(scale, ("spec", "replicas")) or 0
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        cause = errors.invalid_value("spec.replicas", number, "must be greater than or equal to 0")
        raise errors.invalid("autoscaling", "Scale", obj["metadata"]["name"], [cause])
    meta = {name: scale.get("metadata", {}).get(name) for name in ("uid", "resourceVersion")}
    found = with_value(obj, _paths(resource).spec, number)
    return found | {"metadata": obj["metadata"] | {name: value for name, value in meta.items() if value}}


def _paths(resource: Resource) -> ScalePaths:
    if resource.scale is None:
        raise errors.no_such_path()
    return resource.scale
