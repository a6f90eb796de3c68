"""OpenAPI v3 as far as kubectl asks: which queries a write may have, and custom types for `kubectl explain`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.fakes.kube.resources import Resource

_PARAMETERS = [{"name": name, "in": "query", "schema": {"type": "string"}}
               for name in ("dryRun", "fieldManager", "fieldValidation", "force")]  # fmt: skip


def _root(resource: Resource) -> str:
    return f"apis/{resource.group}/{resource.version}" if resource.group else f"api/{resource.version}"


def index(resources: Iterable[Resource]) -> dict[str, Any]:
    """Of /openapi/v3."""
    roots = sorted({_root(each) for each in resources})
    return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in roots}}


def document(resources: Iterable[Resource], root: str) -> dict[str, Any] | None:
    """Of /openapi/v3/apis/<group>/<version>; None where nothing is served."""
    found = [each for each in resources if _root(each) == root]
    if not found:
        return None
    paths, schemas = {}, {}
    for each in found:
        kind = {"group": each.group, "version": each.version, "kind": each.kind}
        scope = "/namespaces/{namespace}" if each.namespaced else ""
        operation = {"parameters": _PARAMETERS, "responses": {}, "x-kubernetes-group-version-kind": kind,
                     "x-kubernetes-action": "patch"}  # fmt: skip
        name = ".".join([*reversed(each.group.split(".")), each.version, each.kind])
        answers = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
                   "description": "OK"}  # fmt: skip
        reading = {
            "responses": {"200": answers},
            "x-kubernetes-group-version-kind": kind,
            "x-kubernetes-action": "get",
        }
        paths[f"/{root}{scope}/{each.plural}/{{name}}"] = {"patch": operation, "get": reading}
        schemas[name] = (each.custom_schema or {"type": "object"}) | {
            "x-kubernetes-group-version-kind": [kind]
        }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths,
            "components": {"schemas": schemas}}  # fmt: skip
