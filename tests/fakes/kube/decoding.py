"""Bodies of requests: as objects of a resource, and held against what the URL and the live object say. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.fakes.kube import errors, patches
from tests.fakes.kube.resources import Resource
from tests.fakes.kube.schema import pruned
from tests.fakes.kube.store import Object, Stored

_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


@dataclass(slots=True)
class Options:
    """Of a write. `warnings` are filled in by it. `validation`: Ignore, Warn or Strict, for unknown fields."""

    manager: str = "unknown"
    force: bool = False
    dry_run: bool = False
    validation: str = "Warn"
    warnings: list[str] = field(default_factory=list)


def parsed(body: bytes) -> Any:
    """JSON or YAML. ApiError 415 for protobuf, which some commands of kubectl send."""
    if body.startswith(b"k8s\0"):
        words = "the body of the request was in an unknown format - accepted media types include: application/json"
        raise errors.ApiError(415, "UnsupportedMediaType", words)
    try:
        return json.loads(body)
    except ValueError:
        try:
            return yaml.safe_load(body)
        except (yaml.YAMLError, UnicodeDecodeError) as wrong:
            raise errors.bad_request(f"error decoding body: {wrong}") from wrong


def decoded(target: Target, body: Any, options: Options, *, typed: bool = False) -> Object:
    """The body as an object of the resource, without what its type does not know; `typed`: that is an error."""
    resource = target.resource
    if not isinstance(body, dict):
        raise errors.bad_request("the body of the request is not an object")
    if typed and not (body.get("apiVersion") and body.get("kind")):
        raise errors.bad_request("apiVersion and kind must be set in an apply patch")
    for name, wanted in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if body.get(name, wanted) != wanted:
            sent = f"{body.get('apiVersion')}, Kind={body.get('kind')}"
            expected = f"the expected API version ({resource.api_version}, {resource.kind})"
            raise errors.bad_request(f"the API version in the data ({sent}) does not match {expected}")
    _check_times(resource, body)
    unknown: list[str] = []
    found: Object = pruned(resource.shape, body, "", unknown)
    if unknown and typed:
        raise mistyped(target, f".{unknown[0]}: field not declared in schema")
    if unknown and options.validation == "Strict":
        listed = ", ".join(f'unknown field "{path}"' for path in unknown)
        words = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
        raise errors.bad_request(f"{words}: strict decoding error: {listed}")
    if options.validation == "Warn":
        options.warnings += [f'unknown field "{path}"' for path in unknown]
    meta = dict(found.get("metadata") or {})
    _check_names(target, meta)
    return {"apiVersion": resource.api_version, "kind": resource.kind} | found | {"metadata": meta}


def _check_times(resource: Resource, body: dict[str, Any]) -> None:
    """A MicroTime has six digits after the second, neither more nor fewer: 400 from the decoder."""
    places = {"events": body, "leases": body.get("spec")}
    place = places.get(resource.plural)
    if not isinstance(place, dict):
        return
    for name in ("eventTime", "acquireTime", "renewTime"):
        value = place.get(name)
        if isinstance(value, str) and not _MICRO_TIME.fullmatch(value):
            layout = "2006-01-02T15:04:05.000000Z07:00"
            words = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise errors.bad_request(f'{words}: parsing time "{value}" as "{layout}": cannot parse it')


def _check_names(target: Target, meta: dict[str, Any]) -> None:
    name, namespace = meta.get("name"), meta.get("namespace")
    if target.name and name and name != target.name:
        words = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
        raise errors.bad_request(words)
    if namespace and namespace != target.namespace:
        words = "the namespace of the provided object does not match the namespace sent on the request"
        raise errors.bad_request(words)
    if target.name:
        meta["name"] = target.name


def mistyped(target: Target, why: str) -> errors.ApiError:
    """500: an apply that does not fit the type."""
    resource = target.resource
    what = f"{target.namespace}/{target.name}; {resource.api_version}, Kind={resource.kind}"
    return errors.untyped(f"failed to create typed patch object ({what}): {why}")


def check_version(target: Target, old: Stored, sent: Object) -> None:
    """What the body says about which object it is, and at which version."""
    resource, meta = target.resource, sent["metadata"]
    if meta.get("deletionTimestamp") and not old.obj["metadata"].get("deletionTimestamp"):
        cause = errors.invalid_value(
            "metadata.deletionTimestamp", meta["deletionTimestamp"], "field is immutable"
        )
        raise errors.invalid(resource.group, resource.kind, target.name, [cause])
    uid, version = meta.get("uid"), meta.get("resourceVersion")
    if uid and uid != old.obj["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old.obj['metadata']['uid']}"
        raise errors.conflict(resource.group, resource.plural, target.name, why)
    if version and version != str(old.version):
        raise errors.conflict(resource.group, resource.plural, target.name, errors.MODIFIED)


def check_namespace(target: Target, namespace: Stored | None) -> None:
    """Whether something can be made in a namespace: it must be there, and there to stay."""
    if not target.resource.namespaced:
        return
    if namespace is None:
        raise errors.not_found("", "namespaces", target.namespace)
    if namespace.obj["metadata"].get("deletionTimestamp"):
        resource, name = target.resource, target.name or "unknown"
        why = f"unable to create new content in namespace {target.namespace} because it is being terminated"
        cause = errors.Cause("NamespaceTerminating", f"namespace {target.namespace} is being terminated",
                             "metadata.namespace")  # fmt: skip
        raise errors.ApiError(403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}',
                              {"name": name, "kind": resource.plural, "causes": [cause.body()]})  # fmt: skip


def patched(resource: Resource, kind: str, old: Object, content: Any) -> Any:
    """An object after a patch that is no apply."""
    if kind == patches.JSON_PATCH:
        if not isinstance(content, list):
            raise errors.bad_request("a JSON patch is a list of operations")
        return patches.json_patched(old, content)
    if not isinstance(content, dict):
        raise errors.bad_request("a merge patch is an object")
    if kind == patches.MERGE_PATCH:
        return patches.merge_patched(old, content)
    if kind == patches.STRATEGIC_PATCH:
        return patches.strategic_patched(resource.shape, old, content)
    raise unsupported_patch(resource)


def unsupported_patch(resource: Resource) -> errors.ApiError:
    """415."""
    known = [patches.JSON_PATCH, patches.MERGE_PATCH, patches.APPLY_PATCH]
    if not resource.is_custom:
        known.append(patches.STRATEGIC_PATCH)
    words = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(
        known
    )
    return errors.ApiError(415, "UnsupportedMediaType", words)
