"""What is there, as the watches tell it, by name and by owner. Knows no API; safe for several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.cluster.control.resources import Object, Ref, owner_of

REMEMBERED_ENDS = 4096


class Store:
    """Objects by reference and by the run or reward model that they belong to. What it gives is read, not changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[Ref, Object] = {}
        self._owned: dict[Ref, dict[Ref, Object]] = {}
        # An answer to a write may be taken in after the watch has told the object's end. By uid: the last version that
        # is known to be over.
        self._gone: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, ref: Ref) -> Object | None:
        """The object, if it is there."""
        return self._objects.get(ref)

    def owned(self, owner: Ref) -> list[Object]:
        """All that belongs to it, itself left out."""
        with self._lock:
            return [item for ref, item in self._owned.get(owner, {}).items() if ref != owner]

    def all(self, kind: str) -> list[Object]:
        """Every object of a kind."""
        with self._lock:
            return [item for ref, item in self._objects.items() if ref.kind == kind]

    def put(self, item: Object, *, anew: bool = False) -> Ref | None:
        """Take a state in; the owner it concerns. An older state than the one that is there is passed over.

        `anew`: the server says that it is there, as opposed to what was written. A watch tells the end also of what
        only lost its label, so then it may come back, in a newer version than the one that was over.
        """
        ref, owner = Ref.of(item), owner_of(item)
        with self._lock:
            there = self._objects.get(ref)
            if self._is_over(item, anew=anew) or (there is not None and _older(item, there)):
                return None
            if there is not None and (before := owner_of(there)) not in (None, owner):
                self._forget(before, ref)
            self._objects[ref] = item
            if owner is not None:
                self._owned.setdefault(owner, {})[ref] = item
        return owner

    def remove(self, ref: Ref, uid: str = "", version: str = "") -> Ref | None:
        """It is gone; the owner it concerned. `uid`: only if it is this one, not one made anew under its name.

        `version`: in which it is known to be gone; empty: the one that is there.
        """
        with self._lock:
            there = self._objects.get(ref)
            self._bury(uid, version or ("" if there is None else _version(there)))
            if there is None or (uid and there["metadata"].get("uid", "") not in ("", uid)):
                return None
            del self._objects[ref]
            owner = owner_of(there)
            self._forget(owner, ref)
        return owner

    def replace(self, kind: str, namespace: str, items: Iterable[Object], version: str) -> set[Ref]:
        """A fresh list of one kind (namespace "": of all); the owners of what is new, changed or gone.

        `version`: of the list. What we made since then is not in it, and is not gone for that.
        """
        fresh = {Ref.of(item): item for item in items}
        touched = set()
        for item in fresh.values():
            before = self.get(Ref.of(item))
            if before is None or _version(before) != _version(item):
                touched.add(self.put(item, anew=True))
        with self._lock:
            known = [
                (ref, item["metadata"].get("uid", ""))
                for ref, item in self._objects.items()
                if ref.kind == kind
                and namespace in ("", ref.namespace)
                and ref not in fresh
                and not _below(version, _version(item))
            ]
        touched |= {self.remove(ref, uid, version) for ref, uid in known}
        return {owner for owner in touched if owner is not None}

    def _is_over(self, item: Object, *, anew: bool) -> bool:
        uid = item["metadata"].get("uid")
        if uid not in self._gone:
            return False
        if not (anew and _below(self._gone[uid], _version(item))):
            return True
        del self._gone[uid]
        return False

    def _bury(self, uid: str, version: str) -> None:
        if uid and (version or uid not in self._gone) and not _below(version, self._gone.get(uid, "")):
            self._gone[uid] = version
        if len(self._gone) > REMEMBERED_ENDS:
            del self._gone[next(iter(self._gone))]

    def _forget(self, owner: Ref | None, ref: Ref) -> None:
        if owner is None:
            return
        below = self._owned.get(owner, {})
        below.pop(ref, None)
        if not below:
            self._owned.pop(owner, None)


def _version(item: Mapping[str, Any]) -> str:
    return str(item["metadata"].get("resourceVersion", ""))


def _older(item: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether `item` is a state before `there` of the same object.

    Versions are decimal numbers that can be compared in every API server since 1.35 by promise, before by fact.
    """
    if item["metadata"].get("uid") != there["metadata"].get("uid"):
        return False
    return _below(_version(item), _version(there))


def _below(version: str, other: str) -> bool:
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)
