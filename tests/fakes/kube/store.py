"""Objects in memory, with one counter of versions and a bounded history that watches begin from.

Objects are never changed once they are here: a write brings a new one, and its JSON is made once. So reading
needs no copies, and a list is a join of bytes.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.kube.errors import gone

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object at a version, and its JSON."""

    obj: Object
    raw: bytes
    version: int

    @property
    def namespace(self) -> str:
        """Empty for what belongs to the cluster."""
        return str(self.obj["metadata"].get("namespace", ""))

    @property
    def name(self) -> str:
        """Within the namespace."""
        return str(self.obj["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Event:
    """A write: `type` ADDED, MODIFIED or DELETED. `before` is None for what was added."""

    storage: str
    type: str
    stored: Stored
    before: Stored | None


# Whoever wants to know of every write; called with the lock held.
Listener = Callable[[Event], None]


class Watcher:
    """Events of one storage, in order. None in the queue: it is over."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()


class Store:
    """All objects. `lock` is held over everything that reads in order to write."""

    def __init__(self, history: int = 10_000) -> None:
        self.lock = threading.RLock()
        self.version = 1
        self.listeners: list[Listener] = []
        self._length = history
        self._objects: dict[str, dict[str, dict[str, Stored]]] = {}
        self._history: dict[str, deque[Event]] = {}
        self._floor: dict[str, int] = {}
        self._compacted = 0
        self._watchers: dict[str, set[Watcher]] = {}

    def get(self, storage: str, namespace: str, name: str) -> Stored | None:
        """One object."""
        return self._objects.get(storage, {}).get(namespace, {}).get(name)

    def each(self, storage: str, namespace: str | None = None) -> Iterator[Stored]:
        """All of a storage, or of one namespace of it, in the order of lists. Under the lock."""
        spaces = self._objects.get(storage, {})
        for space in sorted(spaces) if namespace is None else [namespace]:
            found = spaces.get(space, {})
            yield from (found[name] for name in sorted(found))

    def storages(self) -> list[str]:
        """That hold anything, or did."""
        return list(self._objects)

    def put(self, storage: str, obj: Object) -> Stored:
        """Write an object; its resourceVersion becomes the next one."""
        with self.lock:
            stored = self._versioned(obj)
            space = self._objects.setdefault(storage, {}).setdefault(stored.namespace, {})
            before = space.get(stored.name)
            space[stored.name] = stored
            self._publish(Event(storage, "MODIFIED" if before else "ADDED", stored, before))
            return stored

    def remove(self, storage: str, obj: Object) -> Stored:
        """Take an object away; `obj` is what it was last."""
        with self.lock:
            stored = self._versioned(obj)
            before = self._objects[storage][stored.namespace].pop(stored.name)
            self._publish(Event(storage, "DELETED", stored, before))
            return stored

    def _versioned(self, obj: Object) -> Stored:
        self.version += 1
        found = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.version)}}
        return Stored(
            found, json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode(), self.version
        )

    def _publish(self, event: Event) -> None:
        kept = self._history.setdefault(event.storage, deque())
        kept.append(event)
        while len(kept) > self._length:
            self._floor[event.storage] = kept.popleft().stored.version
        for watcher in self._watchers.get(event.storage, ()):
            watcher.events.put(event)
        for listener in self.listeners:
            listener(event)

    def compact(self) -> None:
        """Forget the history: a watch or a list from an older version is answered 410."""
        with self.lock:
            self._compacted = self.version
            self._history.clear()

    def watch(self, storage: str, since: int) -> Watcher:
        """Events after a version. ApiError 410 where the history does not reach back so far."""
        with self.lock:
            floor = max(self._floor.get(storage, 0), self._compacted)
            if since < floor:
                raise gone(f"too old resource version: {since} ({floor})")
            watcher = Watcher()
            for event in self._history.get(storage, ()):
                if event.stored.version > since:
                    watcher.events.put(event)
            self._watchers.setdefault(storage, set()).add(watcher)
            return watcher

    def unwatch(self, storage: str, watcher: Watcher) -> None:
        """Tell it no more."""
        with self.lock:
            self._watchers.get(storage, set()).discard(watcher)

    def end_watches(self) -> int:
        """End all that are open; how many."""
        with self.lock:
            open_ones = [watcher for watchers in self._watchers.values() for watcher in watchers]
            for watcher in open_ones:
                watcher.events.put(None)
            return len(open_ones)
