"""Every write but deletion: what a create, update, patch or apply makes of an object, and whether it may.

 body ──decode──▶ object ──carry over──▶ defaults ──▶ owners ──▶ validation ──▶ generation ──▶ store
                    (what this endpoint may not write)

A write that changes nothing is none: the object keeps its version.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.fakes.kube import admission, errors, metadata, patches
from tests.fakes.kube.fields import NotOfType
from tests.fakes.kube.managers import Manager, Owners, apply, read_owners, update, write_owners
from tests.fakes.kube.resources import Resource
from tests.fakes.kube.scale import at, scale_of, scaled, with_value
from tests.fakes.kube.schema import pruned
from tests.fakes.kube.store import Object, Store, Stored


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


class Writer:
    """Writes to a store. `clock` gives RFC 3339 times."""

    def __init__(self, store: Store, clock: Callable[[], str]) -> None:
        self.store = store
        self.clock = clock

    def current(self, target: Target) -> Stored:
        """The object. ApiError 404."""
        found = self.store.get(target.resource.storage, target.namespace, target.name)
        if found is None:
            raise errors.not_found(target.resource.group, target.resource.plural, target.name)
        return found

    def create(self, target: Target, body: Any, options: Options) -> Stored:
        """A new object."""
        sent = self._decoded(target, body, options)
        with self.store.lock:
            return self._created(target, sent, options, None)

    def update(self, target: Target, body: Any, options: Options) -> tuple[Stored, bool]:
        """An object as the body has it, and whether it was created."""
        sent = self._decoded(target, body, options)
        with self.store.lock:
            missing = self.store.get(target.resource.storage, target.namespace, target.name) is None
            if missing and target.resource.creates_on_update and not target.subresource:
                return self._created(target, sent, options, None), True
            old = self.current(target)
            needs_version = not (target.resource.unconditional or target.subresource == "status")
            if needs_version and not sent["metadata"].get("resourceVersion"):
                why = "Invalid value: 0x0: must be specified for an update"
                cause = errors.Cause("FieldValueInvalid", why, "metadata.resourceVersion")
                raise errors.invalid(target.resource.group, target.resource.kind, target.name, [cause])
            return self._changed(target, old, sent, options), False

    def patch(self, target: Target, kind: str, body: bytes, options: Options) -> tuple[Stored, bool]:
        """An object after a patch of a content type, and whether it was created."""
        if kind == patches.APPLY_PATCH:
            return self._applied(target, parsed(body), options)
        if kind == patches.STRATEGIC_PATCH and target.resource.is_custom:
            raise unsupported_patch(target.resource)
        content = parsed(body)
        with self.store.lock:
            old = self.current(target)
            new = patched(target.resource, kind, old.obj, content)
            sent = self._decoded(target, new, options)
            return self._changed(target, old, sent, options), False

    def scale(self, target: Target, kind: str, body: bytes, options: Options) -> Object:
        """The Scale after a PUT (`kind` empty) or a patch of a content type. Its manager then owns the number."""
        resource, content = target.resource, parsed(body)
        with self.store.lock:
            old = self.current(target)
            if kind == patches.APPLY_PATCH:
                return scale_of(resource, self._scale_applied(target, old, content, options).obj)
            current = scale_of(resource, old.obj)
            wanted = patched(resource, kind, current, content) if kind else content
            sent = scaled(resource, old.obj, wanted)
            return scale_of(resource, self._changed(target, old, sent, options).obj)

    def _scale_applied(self, target: Target, old: Stored, content: Any, options: Options) -> Stored:
        wanted = scaled(target.resource, old.obj, content)
        self._check_version(target, old, wanted)
        path = target.resource.scale.spec if target.resource.scale else ()
        stated = with_value({}, path, at(wanted, path))
        live, owners = _apart(old.obj)
        manager = Manager(options.manager, True, target.resource.api_version, target.subresource)
        new, after = self._typed(target, live, stated, owners, manager, options)
        return self._finished(target, old, _admitted(target, old.obj, new), after, options)

    def _decoded(self, target: Target, body: Any, options: Options, *, typed: bool = False) -> Object:
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
        unknown: list[str] = []
        found: Object = pruned(resource.shape, body, "", unknown)
        if unknown and typed:
            raise self._mistyped(target, f".{unknown[0]}: field not declared in schema")
        if unknown and options.validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            words = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise errors.bad_request(f"{words}: strict decoding error: {listed}")
        if options.validation == "Warn":
            options.warnings += [f'unknown field "{path}"' for path in unknown]
        meta = dict(found.get("metadata") or {})
        self._check_names(target, meta)
        return {"apiVersion": resource.api_version, "kind": resource.kind} | found | {"metadata": meta}

    def _check_names(self, target: Target, meta: dict[str, Any]) -> None:
        name, namespace = meta.get("name"), meta.get("namespace")
        if target.name and name and name != target.name:
            words = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            raise errors.bad_request(words)
        if namespace and namespace != target.namespace:
            words = "the namespace of the provided object does not match the namespace sent on the request"
            raise errors.bad_request(words)
        if target.name:
            meta["name"] = target.name

    def _created(self, target: Target, sent: Object, options: Options, owners: Owners | None) -> Stored:
        resource = target.resource
        self._check_namespace(target)
        if sent["metadata"].get("resourceVersion"):
            raise errors.ApiError(500, "", "resourceVersion should not be set on objects to be created")
        now = self.clock()
        new = metadata.born(resource, sent, target.namespace, str(uuid.uuid4()), now)
        if self.store.get(resource.storage, target.namespace, new["metadata"]["name"]):
            raise errors.already_exists(resource.group, resource.plural, new["metadata"]["name"])
        if resource.status:
            new.pop("status", None)
        new = admission.prepared(resource, new, None)
        admission.admit(resource, new, None)
        if owners is None:
            manager = Manager(options.manager, False, resource.api_version)
            empty: Object = {"metadata": {}} | ({} if resource.is_custom else {"spec": {}})
            owners = update(resource.shape, empty, new, {}, manager, now)
        new = admission.started(resource, new)
        new["metadata"] = new["metadata"] | {"managedFields": write_owners(owners)}
        return self._stored(resource, new, options)

    def _check_namespace(self, target: Target) -> None:
        if not target.resource.namespaced:
            return
        found = self.store.get("namespaces", "", target.namespace)
        if found is None:
            raise errors.not_found("", "namespaces", target.namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            resource, name = target.resource, target.name or "unknown"
            why = (
                f"unable to create new content in namespace {target.namespace} because it is being terminated"
            )
            cause = errors.Cause("NamespaceTerminating", f"namespace {target.namespace} is being terminated",
                                 "metadata.namespace")  # fmt: skip
            raise errors.ApiError(403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}',
                                  {"name": name, "kind": resource.plural, "causes": [cause.body()]})  # fmt: skip

    def _changed(self, target: Target, old: Stored, sent: Object, options: Options) -> Stored:
        """After an update or a patch that is no apply."""
        resource = target.resource
        self._check_version(target, old, sent)
        new = _admitted(target, old.obj, sent)
        live, owners = _apart(old.obj)
        manager = Manager(options.manager, False, resource.api_version, target.subresource)
        after = update(resource.shape, live, _apart(new)[0], owners, manager, self.clock())
        return self._finished(target, old, new, after, options)

    def _check_version(self, target: Target, old: Stored, sent: Object) -> None:
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

    def _applied(self, target: Target, body: Any, options: Options) -> tuple[Stored, bool]:
        if isinstance(body, dict) and (body.get("metadata") or {}).get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        sent = self._decoded(target, body, options, typed=True)
        manager = Manager(options.manager, True, target.resource.api_version, target.subresource)
        with self.store.lock:
            old = self.store.get(target.resource.storage, target.namespace, target.name)
            if old is None:
                return self._created_by_apply(target, sent, manager, options), True
            self._check_version(target, old, sent)
            live, owners = _apart(old.obj)
            stated = _stated(target, sent)
            merged, after = self._typed(target, live, stated, owners, manager, options)
            new = _admitted(target, old.obj, merged)
            return self._finished(target, old, new, after, options), False

    def _mistyped(self, target: Target, why: str) -> errors.ApiError:
        resource = target.resource
        what = f"{target.namespace}/{target.name}; {resource.api_version}, Kind={resource.kind}"
        return errors.untyped(f"failed to create typed patch object ({what}): {why}")

    def _typed(
        self, target: Target, live: Object, stated: Object, owners: Owners, manager: Manager, options: Options
    ) -> tuple[Object, Owners]:
        try:
            return apply(
                target.resource.shape, live, stated, owners, manager, self.clock(), force=options.force
            )
        except NotOfType as wrong:
            raise self._mistyped(target, str(wrong)) from wrong

    def _created_by_apply(self, target: Target, sent: Object, manager: Manager, options: Options) -> Stored:
        resource = target.resource
        if target.subresource:
            raise errors.not_found(resource.group, resource.plural, target.name)
        if sent["metadata"].get("uid"):
            given = f"the provided object specified uid {sent['metadata']['uid']}"
            why = f"uid mismatch: {given}, and no existing object was found"
            raise errors.conflict(resource.group, resource.plural, target.name, why)
        stated = _stated(target, sent)
        merged, owners = self._typed(target, {"metadata": {}}, stated, {}, manager, options)
        return self._created(target, merged, options, owners)

    def _finished(self, target: Target, old: Stored, new: Object, owners: Owners, options: Options) -> Stored:
        """Store a changed object, where it has changed."""
        resource = target.resource
        new = metadata.counted(resource, old.obj, new)
        new["metadata"] = new["metadata"] | {"managedFields": write_owners(owners)}
        if not new["metadata"]["managedFields"]:
            del new["metadata"]["managedFields"]
        if new == old.obj:
            return old
        if gone_after(new) and not options.dry_run:
            return self.store.remove(resource.storage, new)
        return self._stored(resource, new, options)

    def _stored(self, resource: Resource, new: Object, options: Options) -> Stored:
        if options.dry_run:
            return Stored(new, json.dumps(new, separators=(",", ":"), ensure_ascii=False).encode(), 0)
        return self.store.put(resource.storage, new)


def _admitted(target: Target, old: Object, new: Object) -> Object:
    """What a changed object becomes: what this endpoint does not write as it was, defaults, valid."""
    found = metadata.carried(target.resource, target.subresource, old, new)
    found = admission.prepared(target.resource, found, old)
    admission.admit(target.resource, found, old)
    return found


def _apart(obj: Object) -> tuple[Object, Owners]:
    """An object without its managedFields, and these."""
    meta = dict(obj["metadata"])
    return obj | {"metadata": meta}, read_owners(meta.pop("managedFields", []))


def _stated(target: Target, sent: Object) -> Object:
    """Of an applied object: what this endpoint writes."""
    if target.subresource == "status":
        meta = {name: sent["metadata"][name] for name in ("name", "namespace") if name in sent["metadata"]}
        found = {name: sent[name] for name in ("apiVersion", "kind", "status") if name in sent}
        return found | {"metadata": meta}
    hidden = ("status",) if target.resource.status else ()
    meta = {name: value for name, value in sent["metadata"].items() if name not in ("resourceVersion", "uid")}
    return {name: value for name, value in sent.items() if name not in hidden} | {"metadata": meta}


def gone_after(obj: Object) -> bool:
    """Whether nothing keeps an object that is to be deleted."""
    meta = obj["metadata"]
    waits = meta.get("deletionGracePeriodSeconds") or (obj.get("spec") or {}).get("finalizers")
    return bool(meta.get("deletionTimestamp")) and not meta.get("finalizers") and not waits


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
