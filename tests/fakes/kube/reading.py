"""Lists and watches: what a selection of objects looks like now, page by page, and how it changes."""

from __future__ import annotations

import base64
import json
import queue
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.kube import converted, errors
from tests.fakes.kube.resources import Resource
from tests.fakes.kube.selectors import Requirement, fields_match, labels_match, parse_fields, parse_labels
from tests.fakes.kube.store import Event, Store, Stored, Watcher

_SNAPSHOTS = 64


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects a list or watch is about. `namespace` None: all."""

    resource: Resource
    namespace: str | None
    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    @classmethod
    def read(cls, resource: Resource, namespace: str | None, query: dict[str, str]) -> Selection:
        """From a request. ApiError 400 for a selector that is none."""
        known = frozenset(("metadata.name", "metadata.namespace", *resource.selectable))
        return cls(
            resource,
            namespace,
            tuple(parse_labels(query.get("labelSelector", ""))),
            tuple(parse_fields(query.get("fieldSelector", ""), known)),
        )

    def has(self, stored: Stored | None) -> bool:
        """Whether an object belongs to it."""
        if stored is None or (self.namespace is not None and stored.namespace != self.namespace):
            return False
        if not self.labels and not self.fields:
            return True
        if not labels_match(list(self.labels), stored.obj):
            return False
        return not self.fields or fields_match(list(self.fields), converted.shown(self.resource, stored.obj))


@dataclass(frozen=True, slots=True)
class Page:
    """Objects, and the metadata of their list."""

    meta: dict[str, Any]
    found: list[Stored]


class Lister:
    """Lists of a store. A list in pages goes on in the state that it began with."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._snapshots: OrderedDict[str, tuple[int, list[Stored]]] = OrderedDict()

    def page(self, selection: Selection, query: dict[str, str]) -> Page:
        """What is there, or as much of it as is asked for."""
        limit = int(query.get("limit") or 0)
        with self.store.lock:
            if query.get("continue"):
                version, found = self._continued(query["continue"])
            else:
                self._check_version(query)
                version = self.store.version
                every = self.store.each(selection.resource.storage, selection.namespace)
                found = [each for each in every if selection.has(each)]
            meta: dict[str, Any] = {"resourceVersion": str(version)}
            if limit and len(found) > limit:
                rest = found[limit:]
                meta |= {"continue": self._kept(version, rest), "remainingItemCount": len(rest)}
        return Page(meta, found[:limit] if limit else found)

    def _check_version(self, query: dict[str, str]) -> None:
        wanted, match = int(query.get("resourceVersion") or 0), query.get("resourceVersionMatch", "")
        if wanted > self.store.version:
            words = f"Too large resource version: {wanted}, current: {self.store.version}"
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            raise errors.ApiError(
                504, "Timeout", f"Timeout: {words}", {"causes": causes, "retryAfterSeconds": 1}
            )
        if match == "Exact" and wanted != self.store.version:
            raise errors.gone(f"The resourceVersion for the provided list is too old: {wanted}")

    def _kept(self, version: int, rest: list[Stored]) -> str:
        token = base64.urlsafe_b64encode(
            json.dumps({"rv": version, "id": uuid.uuid4().hex}).encode()
        ).decode()
        self._snapshots[token] = (version, rest)
        while len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return token

    def _continued(self, token: str) -> tuple[int, list[Stored]]:
        if token not in self._snapshots:
            raise errors.gone(
                "The provided continue parameter is too old to display a consistent list result. You can start a new "
                "list without the continue parameter."
            )
        return self._snapshots[token]

    def forget(self) -> None:
        """All pages that are still to come: they are answered 410."""
        with self.store.lock:
            self._snapshots.clear()


def list_body(resource: Resource, page: Page) -> bytes:
    """The list as JSON."""
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": page.meta}
    items = b",".join(converted.raw(resource, each) for each in page.found)
    return json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"items":[' + items + b"]}"


def begin_watch(
    store: Store, selection: Selection, query: dict[str, str]
) -> tuple[Watcher | None, list[bytes]]:
    """A watch and what it says first. Where its version is too old: none, and that it is so, as an event."""
    version = query.get("resourceVersion") or "0"
    wants_all = query.get("sendInitialEvents") == "true"
    if not version.isdigit():
        raise errors.bad_request(f'strconv.ParseUint: parsing "{version}": invalid syntax')
    with store.lock:
        if version != "0" and not wants_all:
            try:
                return store.watch(selection.resource.storage, int(version)), []
            except errors.ApiError as too_old:
                return None, [_line("ERROR", json.dumps(too_old.body()).encode())]
        watcher = store.watch(selection.resource.storage, store.version)
        first = [
            _line("ADDED", converted.raw(selection.resource, each))
            for each in store.each(selection.resource.storage, selection.namespace)
            if selection.has(each)
        ]
        if wants_all:
            marks = {"k8s.io/initial-events-end": "true"}
            first.append(bookmark(selection.resource, store.version, marks))
        return watcher, first


def watch_lines(
    store: Store,
    selection: Selection,
    watcher: Watcher,
    *,
    seconds: float,
    bookmarks: float | None,
    passing: Callable[[], bool] = lambda: True,
) -> Iterator[bytes | None]:
    """Lines of a watch until `seconds` are over, `bookmarks` seconds apart in silence; None: it was cut off."""
    ends = time.monotonic() + seconds
    try:
        while (left := ends - time.monotonic()) > 0:
            try:
                event = watcher.events.get(timeout=left if bookmarks is None else min(left, bookmarks))
            except queue.Empty:
                if bookmarks is not None:
                    yield _bookmark_now(store, selection, watcher)
                continue
            if event is None or not passing():
                yield None
                return
            line = event_line(selection, event)
            if line:
                yield line
    finally:
        store.unwatch(selection.resource.storage, watcher)


def _bookmark_now(store: Store, selection: Selection, watcher: Watcher) -> bytes:
    """A bookmark says that all up to its version has been sent: only while nothing waits."""
    with store.lock:
        if watcher.events.empty():
            return bookmark(selection.resource, store.version)
    return b""


def event_line(selection: Selection, event: Event) -> bytes:
    """A write as a watch of the selection sees it; empty where it does not."""
    before, after = selection.has(event.before), selection.has(event.stored)
    if event.type == "DELETED":
        kind = "DELETED" if before or after else ""
    elif after:
        kind = "MODIFIED" if before else "ADDED"
    else:
        kind = "DELETED" if before else ""
    return _line(kind, converted.raw(selection.resource, event.stored)) if kind else b""


def _line(kind: str, raw: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), raw)


def bookmark(resource: Resource, version: int, annotations: dict[str, str] | None = None) -> bytes:
    """That nothing up to a version is still to come."""
    meta: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        meta["annotations"] = annotations
    obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}
    return _line("BOOKMARK", json.dumps(obj, separators=(",", ":")).encode())
