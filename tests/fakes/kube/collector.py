"""What the controller manager does about deletion, in a thread of its own: dependents, orphans, namespaces, CRDs.

It knows who owns what from the store's events, and looks at an object again whenever that may have changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.fakes.kube.builtin_defaults import INSTANCES
from tests.fakes.kube.catalog import CRDS, Catalog
from tests.fakes.kube.decoding import Target
from tests.fakes.kube.deletion import FOREGROUND, ORPHAN, DeleteOptions, delete
from tests.fakes.kube.metadata import gone_after
from tests.fakes.kube.store import Event, Object, Store, Stored
from tests.fakes.kube.worker import Worker

Key = tuple[str, str, str]


class Collector:
    """Its worker is to be started and stopped."""

    def __init__(self, store: Store, catalog: Catalog, clock: Callable[[], str]) -> None:
        self.store, self.catalog, self.clock = store, catalog, clock
        self._present: dict[str, Key] = {}
        self._owned: dict[str, set[str]] = defaultdict(set)  # uid of an owner: uids of its dependents
        self.worker = Worker(store, "kube-collector", self._look)
        store.listeners.append(self._seen)

    def _seen(self, event: Event) -> None:
        """A write, with the lock held: keep the index, note what to look at."""
        meta = event.stored.obj["metadata"]
        uid = meta["uid"]
        before = _owners(event.before.obj) if event.before else set()
        after = set() if event.type == "DELETED" else _owners(event.stored.obj)
        for owner in before - after:
            self._owned[owner].discard(uid)
        for owner in after - before:
            self._owned[owner].add(uid)
        if event.type == "DELETED":
            self._present.pop(uid, None)
            for each in [*self._owned.pop(uid, ()), *before]:
                self.worker.add(each)
            self._look_at_holders(event)
            return
        self._present[uid] = (event.storage, event.stored.namespace, event.stored.name)
        if after != before or meta.get("deletionTimestamp"):
            self.worker.add(uid)
            for owner in after:
                self.worker.add(owner)

    def _look_at_holders(self, event: Event) -> None:
        """A namespace or a CRD may have waited for the object to go."""
        space = self.store.get("namespaces", "", event.stored.namespace)
        crd = self.store.get(CRDS, "", event.storage)
        for holder in (space, crd):
            if holder and holder.obj["metadata"].get("deletionTimestamp"):
                self.worker.add(holder.obj["metadata"]["uid"])

    def _look(self, uid: str) -> None:
        key = self._present.get(uid)
        stored = self.store.get(*key) if key else None
        if stored is not None:
            self._settle_one(stored)

    def _settle_one(self, stored: Stored) -> None:
        storage = self._present[stored.obj["metadata"]["uid"]][0]
        if stored.obj["metadata"].get("deletionTimestamp"):
            self._settle_deleted(storage, stored)
        elif stored.obj["metadata"].get("ownerReferences"):
            self._settle_dependent(storage, stored)

    def _settle_dependent(self, storage: str, stored: Stored) -> None:
        """Delete it when no owner is left; forget owners that are gone while others stay."""
        references = stored.obj["metadata"]["ownerReferences"]
        there = [each for each in references if each["uid"] in self._present]
        if not there:
            self._delete(storage, stored, "Background")
            return
        waiting = [each for each in there if self._waits_for(each)]
        if len(waiting) == len(there):
            self._delete(
                storage,
                stored,
                "Foreground" if self._owned.get(stored.obj["metadata"]["uid"]) else "Background",
            )
        elif len(there) < len(references):
            self._rewrite(storage, stored, ownerReferences=there)

    def _waits_for(self, reference: Object) -> bool:
        """Whether the owner is being deleted in the foreground."""
        owner = self.store.get(*self._present[reference["uid"]])
        meta = owner.obj["metadata"] if owner else {}
        return bool(meta.get("deletionTimestamp")) and FOREGROUND in (meta.get("finalizers") or ())

    def _settle_deleted(self, storage: str, stored: Stored) -> None:
        meta = stored.obj["metadata"]
        dependents = [uid for uid in self._owned.get(meta["uid"], ()) if uid in self._present]
        finalizers = meta.get("finalizers") or []
        if ORPHAN in finalizers:
            for uid in dependents:
                self._orphan(self._present[uid], meta["uid"])
            self._release(storage, stored, ORPHAN)
        elif FOREGROUND in finalizers:
            if not any(self._blocks(self._present[uid], meta["uid"]) for uid in dependents):
                self._release(storage, stored, FOREGROUND)
            for uid in dependents:
                self.worker.add(uid)
        elif storage == "namespaces":
            self._empty_namespace(stored)
        elif storage == CRDS and INSTANCES in finalizers:
            self._empty_kind(stored)

    def _blocks(self, key: Key, owner: str) -> bool:
        found = self.store.get(*key)
        references = found.obj["metadata"].get("ownerReferences", []) if found else []
        return any(each["uid"] == owner and each.get("blockOwnerDeletion") for each in references)

    def _orphan(self, key: Key, owner: str) -> None:
        found = self.store.get(*key)
        if found:
            left = [each for each in found.obj["metadata"]["ownerReferences"] if each["uid"] != owner]
            self._rewrite(key[0], found, ownerReferences=left)

    def _empty_namespace(self, stored: Stored) -> None:
        left = False
        for resource in self.catalog.namespaced():
            for each in list(self.store.each(resource.storage, stored.name)):
                left = True
                self._delete(resource.storage, each, "Background")
        if not left or not self._holds(stored.name):
            spec = (stored.obj.get("spec") or {}) | {"finalizers": []}
            self._write("namespaces", stored.obj | {"spec": spec})

    def _holds(self, namespace: str) -> bool:
        return any(next(self.store.each(each.storage, namespace), None) for each in self.catalog.namespaced())

    def _empty_kind(self, crd: Stored) -> None:
        for each in list(self.store.each(crd.name)):
            self._delete(crd.name, each, "Background")
        if next(self.store.each(crd.name), None) is None:
            self._release(CRDS, crd, INSTANCES)

    def _delete(self, storage: str, stored: Stored, propagation: str) -> None:
        if stored.obj["metadata"].get("deletionTimestamp"):
            return
        target = Target(self.catalog.stored(storage), stored.namespace, stored.name)
        delete(self.store, target, stored, DeleteOptions(propagation=propagation), self.clock())

    def _release(self, storage: str, stored: Stored, finalizer: str) -> None:
        left = [name for name in stored.obj["metadata"]["finalizers"] if name != finalizer]
        self._rewrite(storage, stored, finalizers=left)

    def _rewrite(self, storage: str, stored: Stored, **meta: Any) -> None:
        kept = {name: value for name, value in (stored.obj["metadata"] | meta).items() if value != []}
        self._write(storage, stored.obj | {"metadata": kept})

    def _write(self, storage: str, obj: Object) -> None:
        if gone_after(obj):
            self.store.remove(storage, obj)
        else:
            self.store.put(storage, obj)


def _owners(obj: Object) -> set[str]:
    return {each["uid"] for each in obj["metadata"].get("ownerReferences") or ()}
