"""Every write but deletion: what a create, update, patch or apply makes of an object, and whether it may.

 body ──decode──▶ object ──carry over──▶ defaults ──▶ owners ──▶ validation ──▶ generation ──▶ store
                    (what this endpoint may not write)

A write that changes nothing is none: the object keeps its version.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from tests.fakes.kube import admission, errors, metadata, patches
from tests.fakes.kube.decoding import (
    Options,
    Target,
    check_namespace,
    check_version,
    decoded,
    mistyped,
    parsed,
    patched,
    unsupported_patch,
)
from tests.fakes.kube.fields import NotOfType
from tests.fakes.kube.managers import Manager, Owners, apply, read_owners, update, write_owners
from tests.fakes.kube.resources import Resource
from tests.fakes.kube.scale import at, scale_of, scaled, with_value
from tests.fakes.kube.store import Object, Store, Stored


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
        sent = decoded(target, body, options)
        with self.store.lock:
            return self._created(target, sent, options, None)

    def update(self, target: Target, body: Any, options: Options) -> tuple[Stored, bool]:
        """An object as the body has it, and whether it was created."""
        sent = decoded(target, body, options)
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
            sent = decoded(target, new, options)
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
        check_version(target, old, wanted)
        path = target.resource.scale.spec if target.resource.scale else ()
        stated = with_value({}, path, at(wanted, path))
        live, owners = _apart(old.obj)
        manager = Manager(options.manager, True, target.resource.api_version, target.subresource)
        new, after = self._typed(target, live, stated, owners, manager, options)
        return self._finished(target, old, _admitted(target, old.obj, new), after, options)

    def _created(self, target: Target, sent: Object, options: Options, owners: Owners | None) -> Stored:
        resource = target.resource
        check_namespace(target, self.store.get("namespaces", "", target.namespace))
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

    def _changed(self, target: Target, old: Stored, sent: Object, options: Options) -> Stored:
        """After an update or a patch that is no apply."""
        resource = target.resource
        check_version(target, old, sent)
        new = _admitted(target, old.obj, sent)
        live, owners = _apart(old.obj)
        manager = Manager(options.manager, False, resource.api_version, target.subresource)
        after = owners
        if target.subresource != "scale" or _is_owned(owners, resource):
            after = update(resource.shape, live, _apart(new)[0], owners, manager, self.clock())
        return self._finished(target, old, new, after, options)

    def _applied(self, target: Target, body: Any, options: Options) -> tuple[Stored, bool]:
        if isinstance(body, dict) and (body.get("metadata") or {}).get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        sent = decoded(target, body, options, typed=True)
        manager = Manager(options.manager, True, target.resource.api_version, target.subresource)
        with self.store.lock:
            old = self.store.get(target.resource.storage, target.namespace, target.name)
            if old is None:
                return self._created_by_apply(target, sent, manager, options), True
            check_version(target, old, sent)
            live, owners = _apart(old.obj)
            stated = _stated(target, sent)
            merged, after = self._typed(target, live, stated, owners, manager, options)
            new = _admitted(target, old.obj, merged)
            return self._finished(target, old, new, after, options), False

    def _typed(
        self, target: Target, live: Object, stated: Object, owners: Owners, manager: Manager, options: Options
    ) -> tuple[Object, Owners]:
        try:
            return apply(
                target.resource.shape, live, stated, owners, manager, self.clock(), force=options.force
            )
        except NotOfType as wrong:
            raise mistyped(target, str(wrong)) from wrong

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
        if metadata.gone_after(new) and not options.dry_run:
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


def _is_owned(owners: Owners, resource: Resource) -> bool:
    """Whether somebody has the number. A Scale shows its owners alone; who updates what nobody owns is not kept."""
    path = tuple(f"f:{part}" for part in (resource.scale.spec if resource.scale else ()))
    return any(path in held.fields for held in owners.values())


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
