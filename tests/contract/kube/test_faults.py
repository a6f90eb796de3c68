"""What a test can make go wrong; ours only, since nobody should do this to a real server."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kubernetes import client
from urllib3.exceptions import HTTPError

from tests.contract.kube.cluster import Cluster, Refused, version
from tests.contract.kube.objects import deployment, job, widget
from tests.fakes.kube import KubeServer


def test_the_next_requests_are_answered_as_told(cluster: Cluster, server: KubeServer) -> None:
    """Only those of the verb and resource; then all is well again."""
    server.calls.fail(2, 503, verb="create", resource="widgets.contract.trimtab.dev", retry_after=1)
    cluster.listed("Widget")
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            cluster.create(widget("a"))
        assert refused.value.code == 503
        assert refused.value.status["details"]["retryAfterSeconds"] == 1
    cluster.create(widget("a"))


def test_a_connection_can_be_cut(cluster: Cluster, server: KubeServer) -> None:
    """Status 0: no answer at all; the write has not happened."""
    server.calls.fail(1, 0, verb="write")
    with pytest.raises(HTTPError):
        cluster.create(widget("a"))
    assert cluster.is_gone("Widget", "a")


def test_an_answer_can_be_late(cluster: Cluster, server: KubeServer) -> None:
    """By as much as is said."""
    server.calls.delay(1, 0.2, verb="list")
    began = time.monotonic()
    cluster.listed("Widget")
    assert time.monotonic() - began >= 0.2


def test_a_history_that_was_compacted_is_gone(cluster: Cluster, server: KubeServer) -> None:
    """A watch from before begins and ends with an ERROR event, the rest of a list is 410; a new list works."""
    for name in "abc":
        cluster.create(widget(name))
    first = cluster.listed("Widget", limit=1)
    server.compact()
    server.create(widget("d") | {"metadata": {"name": "d", "namespace": cluster.namespace}})
    events = cluster.watch("Widget", resourceVersion=version(cluster.get("Widget", "a")))
    assert [(kind, obj["code"], obj["reason"]) for kind, obj in events] == [("ERROR", 410, "Expired")]
    with pytest.raises(Refused) as refused:
        cluster.listed("Widget", limit=1, **{"continue": first["metadata"]["continue"]})
    assert refused.value.code == 410
    assert cluster.names("Widget") == list("abcd")


def test_a_history_is_bounded(server: KubeServer) -> None:
    """The oldest events are forgotten first."""
    with KubeServer(history=3) as small:
        cluster = Cluster(small.client(), "default")
        made = [
            cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
            for name in "abcde"
        ]
        assert cluster.watch("ConfigMap", resourceVersion=version(made[0]))[0][0] == "ERROR"
        events = cluster.watch("ConfigMap", resourceVersion=version(made[1]))
        assert [obj["metadata"]["name"] for _, obj in events] == ["c", "d", "e"]


def test_open_watches_can_be_dropped(cluster: Cluster, server: KubeServer) -> None:
    """The client sees the connection end in the middle."""
    core: Any = client.CoreV1Api(cluster.api)
    answer = core.list_namespaced_config_map(
        cluster.namespace, watch=True, timeout_seconds=30, _preload_content=False
    )
    assert server.drop_watches() >= 1
    with pytest.raises(HTTPError):
        b"".join(answer.stream())


def test_bookmarks_say_where_a_silent_watch_stands(cluster: Cluster, server: KubeServer) -> None:
    """Only where they are asked for."""
    since = version(cluster.listed("Widget"))
    server.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": cluster.namespace}})
    now = server.store.version
    events = cluster.watch("Widget", resourceVersion=since, allowWatchBookmarks="true")
    assert events[0][0] == "BOOKMARK"
    assert int(version(events[0][1])) >= now > int(since)
    assert cluster.watch("Widget", resourceVersion=since) == []


def test_requests_are_counted(cluster: Cluster, server: KubeServer) -> None:
    """So that a test can say that nothing was written."""
    server.calls.reset()
    cluster.create(widget("a"))
    cluster.listed("Widget")
    cluster.patch("Widget", "a", {"spec": {"replicas": 2}}, sub="scale", fieldManager="scaler")
    assert server.calls.by_verb() == {
        ("create", "widgets.contract.trimtab.dev"): 1,
        ("list", "widgets.contract.trimtab.dev"): 1,
        ("patch", "widgets.contract.trimtab.dev/scale"): 1,
    }
    assert [(call.name, call.manager) for call in server.calls.writes][1] == ("a", "scaler")
    server.calls.reset()
    cluster.listed("Widget")
    assert server.calls.writes == []


def test_a_test_says_how_workloads_fare(cluster: Cluster, server: KubeServer) -> None:
    """Ready, failed, succeeded."""
    cluster.create(deployment("a", replicas=2))
    server.workloads.set_ready("a", 1, cluster.namespace)
    status = cluster.get("Deployment", "a")["status"]
    assert (status["readyReplicas"], status["unavailableReplicas"], status["observedGeneration"]) == (1, 1, 1)
    for name, act in (("b", server.workloads.succeed_job), ("c", server.workloads.fail_job)):
        cluster.create(job(name))
        act(name, cluster.namespace)
    last = [cluster.get("Job", name)["status"]["conditions"][-1]["type"] for name in "bc"]
    assert last == ["Complete", "Failed"]


def test_workloads_can_come_up_by_themselves(cluster: Cluster, server: KubeServer) -> None:
    """With pods, that follow the scale and go with their owner."""
    server.controllers.start(pods=True)
    try:
        cluster.create(deployment("a", replicas=3))
        cluster.create(job("b") | {"metadata": {"name": "b"}})
        cluster.patch("Job", "b", {"spec": {"suspend": False}})
        server.settle()
        assert cluster.get("Deployment", "a")["status"]["readyReplicas"] == 3
        assert len(cluster.names("Pod", labelSelector="app=a", fieldSelector="status.phase=Running")) == 3
        assert cluster.get("Job", "b")["status"]["active"] == 1
        cluster.patch("Deployment", "a", {"spec": {"replicas": 1}}, sub="scale")
        server.settle()
        assert len(cluster.names("Pod", labelSelector="app=a")) == 1
        cluster.delete("Deployment", "a")
        cluster.delete("Job", "b", propagationPolicy="Background")
        server.settle()
        assert cluster.names("Pod") == []
    finally:
        server.controllers.stop()


def test_many_objects_come_quickly(cluster: Cluster, server: KubeServer) -> None:
    """A thousand writes in a few seconds, each seen by a watch."""
    since = version(cluster.listed("ConfigMap"))
    began = time.monotonic()
    server.load(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"c{n}", "namespace": cluster.namespace},
        }
        for n in range(1000)
    )
    events = cluster.watch("ConfigMap", resourceVersion=since)
    assert len(events) == 1000
    assert time.monotonic() - began < 20
