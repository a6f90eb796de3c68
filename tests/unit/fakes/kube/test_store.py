"""The store: versions, order, history."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.store import Event, Store, Watcher


def thing(name: str, namespace: str = "n", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, **more}


def told(watcher: Watcher) -> list[tuple[str, str, int]]:
    """Type, name and version of all that waits."""
    found = []
    while not watcher.events.empty():
        event = watcher.events.get()
        assert isinstance(event, Event)
        found.append((event.type, event.stored.name, event.stored.version))
    return found


def test_one_counter_for_all() -> None:
    """Every write has a version of its own, a removal too."""
    store = Store()
    first, second = store.put("a", thing("x")), store.put("b", thing("x"))
    gone = store.remove("a", first.obj)
    assert [first.version, second.version, gone.version] == [2, 3, 4]
    assert second.obj["metadata"]["resourceVersion"] == "3"
    assert b'"resourceVersion":"3"' in second.raw


def test_what_is_stored_is_never_changed() -> None:
    """A second write is a second object."""
    store = Store()
    first = store.put("a", thing("x", v=1))
    store.put("a", first.obj | {"v": 2})
    assert first.obj["v"] == 1


def test_lists_are_in_the_order_of_namespace_and_name() -> None:
    """Whatever order they came in."""
    store = Store()
    for name, space in (("b", "n"), ("a", "o"), ("a", "n")):
        store.put("a", thing(name, space))
    assert [(each.namespace, each.name) for each in store.each("a")] == [("n", "a"), ("n", "b"), ("o", "a")]
    assert [each.name for each in store.each("a", "n")] == ["a", "b"]


def test_a_watch_begins_after_its_version_and_goes_on() -> None:
    """What was before it is not told, what comes is; other storages are not."""
    store = Store()
    first = store.put("a", thing("x"))
    store.put("a", thing("y"))
    watcher = store.watch("a", first.version)
    store.put("b", thing("z"))
    store.put("a", first.obj | {"v": 2})
    assert told(watcher) == [("ADDED", "y", 3), ("MODIFIED", "x", 5)]
    store.unwatch("a", watcher)
    store.put("a", thing("w"))
    assert told(watcher) == []


def test_a_history_is_bounded_and_can_be_forgotten() -> None:
    """A watch that would miss something is refused, one that would not is not."""
    store = Store(history=2)
    versions = [store.put("a", thing(name)).version for name in "xyz"]
    with pytest.raises(ApiError, match="too old resource version"):
        store.watch("a", versions[0] - 1)
    assert len(told(store.watch("a", versions[0]))) == 2
    store.compact()
    with pytest.raises(ApiError):
        store.watch("a", versions[1])
    assert told(store.watch("a", versions[2])) == []


def test_listeners_are_told_of_every_write() -> None:
    """With what was there before."""
    store = Store()
    seen: list[tuple[str, bool]] = []
    store.listeners.append(lambda event: seen.append((event.type, event.before is not None)))
    first = store.put("a", thing("x"))
    store.put("a", first.obj | {"v": 2})
    store.remove("a", first.obj)
    assert seen == [("ADDED", False), ("MODIFIED", True), ("DELETED", True)]
