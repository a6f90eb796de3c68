"""Deletion, finalizers, garbage collection."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kube.cluster import Cluster, Object, Refused, until
from tests.contract.kube.objects import config_map, deployment, job, pod, widget


def owned(name: str, owner: Object, **marks: Any) -> Object:
    """A ConfigMap of an owner."""
    made = config_map(name)
    reference = {name: owner[name] for name in ("apiVersion", "kind")}
    reference |= {name: owner["metadata"][name] for name in ("name", "uid")} | marks
    made["metadata"]["ownerReferences"] = [reference]
    return made


def test_what_nothing_keeps_is_gone_at_once(cluster: Cluster) -> None:
    """DELETE answers with a Status that names it."""
    made = cluster.create(widget("a"))
    answer = cluster.delete("Widget", "a")
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"]["uid"] == made["metadata"]["uid"]
    assert cluster.is_gone("Widget", "a")
    with pytest.raises(Refused) as refused:
        cluster.delete("Widget", "a")
    assert refused.value.code == 404


def test_a_finalizer_keeps_an_object_until_it_is_taken_away(cluster: Cluster) -> None:
    """It is marked, and can still be changed."""
    sent = widget("a")
    sent["metadata"]["finalizers"] = ["trimtab.dev/drain"]
    cluster.create(sent)
    answer = cluster.delete("Widget", "a")
    assert answer["metadata"]["deletionTimestamp"]
    assert answer["metadata"]["generation"] == 2
    assert cluster.patch("Widget", "a", {"spec": {"size": 5}})["spec"]["size"] == 5
    assert (
        cluster.delete("Widget", "a")["metadata"]["deletionTimestamp"]
        == answer["metadata"]["deletionTimestamp"]
    )
    cluster.patch("Widget", "a", {"metadata": {"finalizers": None}})
    assert cluster.is_gone("Widget", "a")


def test_no_finalizer_is_added_to_what_is_being_deleted(cluster: Cluster) -> None:
    """422: it would never end."""
    sent = widget("a")
    sent["metadata"]["finalizers"] = ["trimtab.dev/drain"]
    cluster.create(sent)
    cluster.delete("Widget", "a")
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"metadata": {"finalizers": ["trimtab.dev/drain", "trimtab.dev/more"]}})
    assert set(refused.value.causes) == {("FieldValueForbidden", "metadata.finalizers")}
    cluster.patch("Widget", "a", {"metadata": {"finalizers": None}})


def test_a_deletion_marks_itself_alone(cluster: Cluster) -> None:
    """Nobody else can set or take away the mark."""
    cluster.create(widget("a"))
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"metadata": {"deletionTimestamp": "2001-01-01T00:00:00Z"}})
    assert set(refused.value.causes) == {("FieldValueInvalid", "metadata.deletionTimestamp")}


def test_dependents_follow_their_owner(cluster: Cluster) -> None:
    """In the background."""
    owner = cluster.create(widget("a"))
    cluster.create(owned("b", owner))
    cluster.delete("Widget", "a")
    until(lambda: cluster.is_gone("ConfigMap", "b"), "collected")


def test_orphans_stay(cluster: Cluster) -> None:
    """Without the reference."""
    owner = cluster.create(widget("a"))
    cluster.create(owned("b", owner))
    cluster.delete("Widget", "a", propagationPolicy="Orphan")
    until(lambda: cluster.is_gone("Widget", "a"), "orphaned")
    assert "ownerReferences" not in cluster.get("ConfigMap", "b")["metadata"]


def test_in_the_foreground_the_owner_goes_last(cluster: Cluster) -> None:
    """It waits for dependents that block it."""
    owner = cluster.create(widget("a"))
    kept = owned("b", owner, blockOwnerDeletion=True)
    kept["metadata"]["finalizers"] = ["trimtab.dev/drain"]
    cluster.create(kept)
    answer = cluster.delete("Widget", "a", propagationPolicy="Foreground")
    assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
    until(lambda: "deletionTimestamp" in cluster.get("ConfigMap", "b")["metadata"], "dependent marked")
    assert not cluster.is_gone("Widget", "a")
    cluster.patch("ConfigMap", "b", {"metadata": {"finalizers": None}})
    until(lambda: cluster.is_gone("Widget", "a"), "owner gone")
    assert cluster.is_gone("ConfigMap", "b")


def test_a_dependent_of_two_stays_with_the_other(cluster: Cluster) -> None:
    """The reference to the one that went is taken away."""
    first, second = cluster.create(widget("a")), cluster.create(widget("b"))
    both = owned("c", first)
    both["metadata"]["ownerReferences"] += owned("c", second)["metadata"]["ownerReferences"]
    cluster.create(both)
    cluster.delete("Widget", "a")
    until(lambda: len(cluster.get("ConfigMap", "c")["metadata"]["ownerReferences"]) == 1, "reference dropped")
    cluster.delete("Widget", "b")
    until(lambda: cluster.is_gone("ConfigMap", "c"), "collected")


def test_what_refers_to_an_owner_that_is_gone_is_collected(cluster: Cluster) -> None:
    """The uid counts, not the name."""
    owner = cluster.create(widget("a"))
    cluster.delete("Widget", "a")
    cluster.create(widget("a"))
    cluster.create(owned("b", owner))
    until(lambda: cluster.is_gone("ConfigMap", "b"), "collected")


def test_preconditions_keep_what_is_not_meant(cluster: Cluster) -> None:
    """409 for another uid or version."""
    made = cluster.create(widget("a"))
    for name, value in (("uid", "00000000-0000-4000-8000-000000000000"), ("resourceVersion", "1")):
        with pytest.raises(Refused) as refused:
            cluster.delete("Widget", "a", preconditions={name: value})
        assert refused.value.code == 409
    cluster.delete("Widget", "a", preconditions={"uid": made["metadata"]["uid"]})
    assert cluster.is_gone("Widget", "a")


def test_a_collection_is_deleted_by_selector(cluster: Cluster) -> None:
    """deletecollection."""
    for name, app in (("a", "x"), ("b", "x"), ("c", "y")):
        sent = widget(name)
        sent["metadata"]["labels"] = {"app": app}
        cluster.create(sent)
    cluster.call("DELETE", cluster.path("Widget"), labelSelector="app=x")
    assert cluster.names("Widget") == ["c"]


def test_a_job_keeps_its_pods_unless_told_otherwise(cluster: Cluster) -> None:
    """batch/v1 orphans by default; Background is to be asked for."""
    for policy, stays in ((None, True), ("Background", False)):
        owner = cluster.create(job("a"))
        cluster.create(owned("b", owner))
        cluster.delete("Job", "a", **({"propagationPolicy": policy} if policy else {}))
        until(lambda: cluster.is_gone("Job", "a"), "job gone")
        if stays:
            assert not cluster.is_gone("ConfigMap", "b")
            cluster.delete("ConfigMap", "b")
        else:
            until(lambda: cluster.is_gone("ConfigMap", "b"), "collected")


def test_a_pod_without_a_node_goes_at_once(cluster: Cluster) -> None:
    """There is no one to wait for; DELETE answers with the pod."""
    cluster.create(pod("a"))
    assert cluster.delete("Pod", "a")["kind"] == "Pod"
    assert cluster.is_gone("Pod", "a")


def test_a_pod_on_a_node_has_its_grace(cluster: Cluster) -> None:
    """It is marked, and goes when its node says so."""
    cluster.create(pod("a"))
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
               "target": {"apiVersion": "v1", "kind": "Node", "name": "nowhere"}}  # fmt: skip
    cluster.call("POST", cluster.path("Pod", "a", "binding"), binding)
    answer = cluster.delete("Pod", "a", gracePeriodSeconds=20)
    assert answer["metadata"]["deletionGracePeriodSeconds"] == 20
    assert answer["spec"]["nodeName"] == "nowhere"
    cluster.delete("Pod", "a", gracePeriodSeconds=0)
    assert cluster.is_gone("Pod", "a")


def test_a_namespace_takes_all_with_it(cluster: Cluster) -> None:
    """And nothing new is made in it meanwhile."""
    other = Cluster(cluster.api, f"{cluster.namespace}-more")
    other.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}})
    sent = widget("a")
    sent["metadata"]["finalizers"] = ["trimtab.dev/drain"]
    other.create(sent)
    other.create(deployment("b"))
    other.delete("Namespace", other.namespace)
    assert other.get("Namespace", other.namespace)["status"]["phase"] == "Terminating"
    with pytest.raises(Refused) as refused:
        other.create(config_map("late"))
    assert refused.value.code == 403
    assert refused.value.status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    until(lambda: "deletionTimestamp" in other.get("Widget", "a")["metadata"], "content marked")
    other.patch("Widget", "a", {"metadata": {"finalizers": None}})
    until(lambda: other.is_gone("Namespace", other.namespace), "namespace gone")
