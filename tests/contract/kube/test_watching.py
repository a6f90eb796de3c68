"""Watches: what they begin with, what they say, where they can begin."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.contract.kube.cluster import Cluster, Object, Refused, version
from tests.contract.kube.objects import config_map, widget


def seen(events: list[tuple[str, Object]]) -> list[tuple[str, str]]:
    """Type and name, without bookmarks."""
    return [(kind, obj["metadata"]["name"]) for kind, obj in events if kind != "BOOKMARK"]


def test_a_watch_from_a_lists_version_sees_what_comes_after(cluster: Cluster) -> None:
    """Each write once, in order, with the version it made."""
    cluster.create(widget("a"))
    since = version(cluster.listed("Widget"))
    changed = cluster.patch("Widget", "a", {"spec": {"size": 2}})
    cluster.create(widget("b"))
    cluster.delete("Widget", "a")
    events = cluster.watch("Widget", resourceVersion=since)
    assert seen(events) == [("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert version(events[0][1]) == version(changed)
    versions = [int(version(obj)) for _, obj in events]
    assert versions == sorted(versions)


def test_a_watch_without_a_version_begins_with_what_is_there(cluster: Cluster) -> None:
    """As additions."""
    cluster.create(widget("a"))
    cluster.create(widget("b"))
    assert sorted(seen(cluster.watch("Widget"))) == [("ADDED", "a"), ("ADDED", "b")]


def test_a_write_that_changes_nothing_is_no_event(cluster: Cluster) -> None:
    """Nobody wakes up for it."""
    cluster.create(widget("a"))
    since = version(cluster.apply(widget("a", size=1), "one"))
    cluster.apply(widget("a", size=1), "one")
    assert seen(cluster.watch("Widget", resourceVersion=since)) == []


def test_a_watch_follows_while_it_is_open(cluster: Cluster) -> None:
    """What is written after it began arrives."""
    since = version(cluster.listed("Widget"))
    timer = threading.Timer(0.3, lambda: cluster.create(widget("late")))
    timer.start()
    assert seen(cluster.watch("Widget", seconds=2, resourceVersion=since)) == [("ADDED", "late")]
    timer.join()


def test_what_begins_to_match_is_added_and_what_ceases_is_deleted(cluster: Cluster) -> None:
    """A selector draws a border that objects can cross."""
    since = version(cluster.listed("ConfigMap"))
    cluster.create(config_map("a"))
    for value in ("x", "x2", "y"):
        labels = {"app": "x" if value != "y" else "y", "value": value}
        cluster.patch("ConfigMap", "a", {"metadata": {"labels": labels}})
    events = cluster.watch("ConfigMap", resourceVersion=since, labelSelector="app=x")
    assert seen(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_one_object_can_be_watched(cluster: Cluster) -> None:
    """By its name as a field."""
    since = version(cluster.listed("Widget"))
    cluster.create(widget("a"))
    cluster.create(widget("b"))
    events = cluster.watch("Widget", resourceVersion=since, fieldSelector="metadata.name=b")
    assert seen(events) == [("ADDED", "b")]


def test_a_watch_of_all_namespaces(cluster: Cluster) -> None:
    """The collection without a namespace."""
    since = version(cluster.listed("Widget"))
    cluster.create(widget("a"))
    everywhere = Cluster(cluster.api, cluster.namespace)
    everywhere.path = lambda *_args, **_names: "/apis/contract.trimtab.dev/v1/widgets"  # type: ignore[method-assign]
    events = everywhere.watch("Widget", resourceVersion=since)
    assert ("ADDED", "a") in seen(events)


def test_initial_events_can_be_asked_for(cluster: Cluster) -> None:
    """A list as a watch, ended by a bookmark that says so."""
    cluster.create(widget("a"))
    query: dict[str, Any] = {
        "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true",
    }  # fmt: skip
    try:
        events = cluster.watch("Widget", **query)
    except Refused as refused:
        if refused.code == 422:
            pytest.skip("this release has it switched off")
        raise
    assert seen(events) == [("ADDED", "a")]
    marks = [obj["metadata"].get("annotations", {}) for kind, obj in events if kind == "BOOKMARK"]
    assert marks[0]["k8s.io/initial-events-end"] == "true"
