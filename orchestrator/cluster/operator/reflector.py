"""Keeps the store as the API server has it: list once, then watch from there. Knows no run.

list ──▶ watch from its version ──ends──▶ watch from the last version seen (bookmarks count)
 ▲                │
 └── 410 Gone ────┘        connection lost: again from the last version, after a back-off
 └── 404 ─────────┘        of an optional kind: what brings it is not installed (any more); asked again and again
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from orchestrator.cluster.client.api import Api, Watching
from orchestrator.cluster.client.errors import Gone
from orchestrator.cluster.control.resources import Object, Ref, owner_of
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.operator.metrics import LISTS
from services.common.errors import Forbidden, NotFound, TrimtabError

WATCH_SECONDS = 300
PAUSE_FIRST, PAUSE_MOST = 0.2, 30.0
ABSENT_SECONDS = 60.0
"""Between two looks for a kind that the server does not have, or does not show."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_log = structlog.get_logger(__name__)


class Reflector:
    """One kind in one namespace ("": all). `changed` gets the owner that a change concerns.

    `optional`: the server may not have the kind (yet). That alone is told from a server that does not answer: what
    is not known to be absent is waited for.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        changed: Callable[[Ref], None],
        *,
        kind: str,
        namespace: str = "",
        selector: str = "",
        optional: bool = False,
        absent_seconds: float = ABSENT_SECONDS,
    ) -> None:
        self.kind, self.namespace = kind, namespace
        self._api, self._store, self._changed, self._selector = api, store, changed, selector
        self._optional, self._absent_seconds = optional, absent_seconds
        self._version, self._trouble = "", ""
        self._watching: Watching | None = None
        self._stopping = threading.Event()
        self.synced = threading.Event()

    @property
    def settled(self) -> bool:
        """Whether nobody needs to wait for it: its list is there, or it is optional and was asked for."""
        return self.synced.is_set() or (self._optional and bool(self._trouble))

    @property
    def unseen(self) -> str:
        """Why the store does not say what is there, in words; empty: it does."""
        return "" if self.synced.is_set() else self._trouble or f"{self.kind}s have not been listed yet"

    def start(self) -> threading.Thread:
        """On a thread of its own."""
        thread = threading.Thread(target=self.run, name=f"watch {self.kind} {self.namespace}", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the watch under way."""
        self._stopping.set()
        watching = self._watching
        if watching is not None:
            watching.stop()

    def run(self) -> None:
        """Until stopped. Errors of the server are waited out."""
        pause = PAUSE_FIRST
        while not self._stopping.is_set():
            try:
                self.once()
                pause = PAUSE_FIRST
            except Gone:
                _log.info("watch is too old, listing anew", kind=self.kind, namespace=self.namespace)
                self._version = ""
            except TrimtabError as error:
                if self._stopping.is_set():
                    return
                is_absent = self._is_absent(error)
                self._say(error, is_absent=is_absent)
                # Many replicas and kinds lose a server at once: they must not all come back in one moment.
                self._stopping.wait((self._absent_seconds if is_absent else pause) * random.uniform(0.5, 1.0))
                pause = min(pause * 2, PAUSE_MOST)

    def once(self) -> None:
        """List if there is no version to watch from; then one watch to its end."""
        if not self._version:
            self._list()
        watching = self._api.watch(
            self.kind,
            self.namespace,
            self._selector,
            self._version,
            round(WATCH_SECONDS * random.uniform(0.8, 1.2)),
        )
        self._watching = watching
        try:
            if not self._stopping.is_set():
                for event, item in watching:
                    self._take(event, item)
        finally:
            self._watching = None
            watching.close()

    def _is_absent(self, error: TrimtabError) -> bool:
        """Whether the server does not have the kind, or has never shown it: then nobody need ask often."""
        if self._optional and isinstance(error, NotFound):
            self._version = ""
            self.synced.clear()
        return self._optional and isinstance(error, NotFound | Forbidden) and not self.synced.is_set()

    def _say(self, error: TrimtabError, *, is_absent: bool) -> None:
        told, self._trouble = self._trouble, str(error)
        if not is_absent:
            _log.warning("cannot watch", kind=self.kind, namespace=self.namespace, error=str(error))
        elif told != self._trouble:
            _log.info("not watched", kind=self.kind, namespace=self.namespace, why=str(error))

    def _list(self) -> None:
        listing = self._api.list(self.kind, self.namespace, self._selector)
        LISTS.labels(self.kind).inc()
        items = [slim(item) for item in listing.items]
        for owner in self._store.replace(self.kind, self.namespace, items, listing.version):
            self._changed(owner)
        self._version = listing.version
        self.synced.set()

    def _take(self, event: str, item: Object) -> None:
        version = item["metadata"].get("resourceVersion", "")
        owner = None
        if event in ("ADDED", "MODIFIED"):
            owner = self._store.put(slim(item), anew=event == "ADDED")
        elif event == "DELETED":
            self._store.remove(Ref.of(item), item["metadata"].get("uid", ""), version)
            # Told also where our own delete took it out of the store before: what follows it waits for this.
            owner = owner_of(item)
        self._version = version or self._version
        if owner is not None:
            self._changed(owner)


def slim(item: Object) -> Object:
    """Without what nobody here reads and what is most of an object's size. Of managedFields who owns replicas stays."""
    metadata = dict(item["metadata"])
    fields = metadata.pop("managedFields", None)
    if item["kind"] == "Deployment" and fields:
        metadata["managedFields"] = [_replicas(entry) for entry in fields if _replicas(entry)]
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    return {**item, "metadata": metadata}


def _replicas(entry: Mapping[str, Any]) -> Object:
    if "f:replicas" not in entry.get("fieldsV1", {}).get("f:spec", {}):
        return {}
    return {
        "manager": entry.get("manager", ""),
        "operation": entry.get("operation", ""),
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
