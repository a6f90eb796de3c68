"""Status and scale."""

from __future__ import annotations

import pytest

from tests.contract.kube.cluster import APPLY, JSON_PATCH, Cluster, Refused, managers, version
from tests.contract.kube.objects import deployment, pod, widget


def test_a_status_is_written_through_its_subresource_alone(cluster: Cluster) -> None:
    """Neither at creation nor by an update."""
    made = cluster.create(widget("a") | {"status": {"phase": "x"}})
    assert "status" not in made
    assert "status" not in cluster.replace(made | {"status": {"phase": "x"}})
    written = cluster.replace(cluster.get("Widget", "a") | {"status": {"phase": "x"}}, "status")
    assert written["status"] == {"phase": "x"}


def test_a_write_of_the_status_touches_nothing_else(cluster: Cluster) -> None:
    """Spec and labels stay; the generation too."""
    made = cluster.create(widget("a", size=1))
    made["metadata"]["labels"] = {"x": "y"}
    made |= {"spec": {"size": 5}, "status": {"phase": "x"}}
    written = cluster.replace(made, "status")
    assert written["spec"]["size"] == 1
    assert "labels" not in written["metadata"]
    assert written["metadata"]["generation"] == 1


def test_a_write_of_the_spec_keeps_the_status(cluster: Cluster) -> None:
    """Whatever the body says of it."""
    cluster.create(widget("a"))
    cluster.patch("Widget", "a", {"status": {"phase": "x"}}, sub="status")
    made = cluster.patch("Widget", "a", {"spec": {"size": 2}, "status": {"phase": "y"}})
    assert made["status"] == {"phase": "x"}


def test_a_status_that_stays_the_same_is_no_write(cluster: Cluster) -> None:
    """The version stays."""
    cluster.create(widget("a"))
    first = cluster.apply(widget("a") | {"status": {"phase": "x"}}, "one", "status")
    assert version(cluster.apply(widget("a") | {"status": {"phase": "x"}}, "one", "status")) == version(first)
    assert version(cluster.patch("Widget", "a", {"status": {"phase": "x"}}, sub="status")) == version(first)


def test_a_status_is_owned_apart_from_the_spec(cluster: Cluster) -> None:
    """The same manager has an entry for each."""
    cluster.apply(widget("a"), "one")
    made = cluster.apply(widget("a") | {"status": {"phase": "x"}}, "one", "status")
    assert managers(made) == {
        ("one", "Apply", ""): {"f:spec": {"f:size": {}}},
        ("one", "Apply", "status"): {"f:status": {"f:phase": {}}},
    }
    assert cluster.apply(widget("a"), "one")["status"] == {"phase": "x"}


def test_a_status_on_an_old_version_is_refused(cluster: Cluster) -> None:
    """Optimistic locking holds there too."""
    first = cluster.create(widget("a"))
    cluster.patch("Widget", "a", {"spec": {"size": 2}})
    with pytest.raises(Refused) as refused:
        cluster.replace(first | {"status": {"phase": "x"}}, "status")
    assert refused.value.code == 409


def test_a_pods_status_is_written_by_its_node(cluster: Cluster) -> None:
    """Built-in kinds have the same subresource."""
    cluster.create(pod("a"))
    made = cluster.patch("Pod", "a", {"status": {"phase": "Running"}}, sub="status")
    assert made["status"]["phase"] == "Running"
    cluster.delete("Pod", "a", gracePeriodSeconds=0)


def test_a_scale_stands_for_the_replicas(cluster: Cluster) -> None:
    """autoscaling/v1, with the object's identity and version."""
    made = cluster.create(deployment("a"))
    scale = cluster.get("Deployment", "a", "scale")
    assert (scale["apiVersion"], scale["kind"]) == ("autoscaling/v1", "Scale")
    assert scale["spec"].get("replicas", 0) == 0
    assert scale["status"]["selector"] == "app=a"
    assert scale["metadata"]["uid"] == made["metadata"]["uid"]


def test_writing_a_scale_owns_the_replicas(cluster: Cluster) -> None:
    """Whoever scales has spec.replicas from then on, and an applier that states it no more leaves it alone.

    It was applied before: where nobody has stated it, a real server notes no scaler either.
    """
    unsaid = deployment("a")
    del unsaid["spec"]["replicas"]
    cluster.apply(deployment("a", replicas=2), "one")
    scale = cluster.patch("Deployment", "a", {"spec": {"replicas": 3}}, sub="scale", fieldManager="scaler")
    assert scale["spec"]["replicas"] == 3
    made = cluster.get("Deployment", "a")
    assert made["spec"]["replicas"] == 3
    assert managers(made)["scaler", "Update", "scale"] == {"f:spec": {"f:replicas": {}}}
    assert cluster.apply(unsaid, "one")["spec"]["replicas"] == 3


def test_an_applier_of_replicas_conflicts_with_the_scaler(cluster: Cluster) -> None:
    """So that a fight is seen."""
    cluster.apply(widget("a", replicas=2), "one")
    cluster.patch("Widget", "a", {"spec": {"replicas": 3}}, sub="scale", fieldManager="scaler")
    with pytest.raises(Refused) as refused:
        cluster.apply(widget("a", replicas=2), "one")
    cause = refused.value.status["details"]["causes"][0]
    assert cause["field"] == ".spec.replicas"
    assert cause["message"].startswith('conflict with "scaler" with subresource "scale" using')


def test_a_scale_can_be_put_and_patched(cluster: Cluster) -> None:
    """With its version as a precondition, where it is given."""
    cluster.create(widget("a"))
    scale = cluster.get("Widget", "a", "scale")
    scale["spec"]["replicas"] = 2
    assert cluster.call("PUT", cluster.path("Widget", "a", "scale"), scale)["spec"]["replicas"] == 2
    with pytest.raises(Refused) as refused:
        cluster.call("PUT", cluster.path("Widget", "a", "scale"), scale | {"spec": {"replicas": 5}})
    assert refused.value.code == 409
    change = [{"op": "replace", "path": "/spec/replicas", "value": 4}]
    assert cluster.patch("Widget", "a", change, JSON_PATCH, "scale")["spec"]["replicas"] == 4


def test_a_scale_counts_as_a_change_of_the_spec(cluster: Cluster) -> None:
    """The generation rises, once."""
    cluster.create(widget("a"))
    for _ in range(2):
        cluster.patch("Widget", "a", {"spec": {"replicas": 3}}, sub="scale")
    assert cluster.get("Widget", "a")["metadata"]["generation"] == 2


def test_a_scale_that_stays_is_no_write(cluster: Cluster) -> None:
    """The version stays."""
    cluster.create(widget("a"))
    first = cluster.patch("Widget", "a", {"spec": {"replicas": 3}}, sub="scale", fieldManager="scaler")
    again = cluster.patch("Widget", "a", {"spec": {"replicas": 3}}, sub="scale", fieldManager="scaler")
    assert version(again) == version(first)


def test_a_scale_can_be_applied(cluster: Cluster) -> None:
    """Of a built-in kind (a real server fails at custom ones), and conflicts with another who applied the replicas."""
    cluster.apply(deployment("a", replicas=2), "one")
    scale = {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": "a"},
        "spec": {"replicas": 3},
    }
    with pytest.raises(Refused) as refused:
        cluster.patch("Deployment", "a", scale, APPLY, "scale", fieldManager="scaler")
    assert refused.value.code == 409
    made = cluster.patch("Deployment", "a", scale, APPLY, "scale", fieldManager="scaler", force=True)
    assert made["spec"]["replicas"] == 3
    assert ("scaler", "Apply", "scale") in managers(cluster.get("Deployment", "a"))


def test_a_negative_scale_is_refused(cluster: Cluster) -> None:
    """422."""
    cluster.create(widget("a"))
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"spec": {"replicas": -1}}, sub="scale")
    assert refused.value.code == 422


def test_a_scale_shows_what_the_status_says(cluster: Cluster) -> None:
    """Replicas and selector of a custom resource come from its status."""
    cluster.create(widget("a"))
    cluster.patch("Widget", "a", {"status": {"replicas": 2, "selector": "app=a"}}, sub="status")
    assert cluster.get("Widget", "a", "scale")["status"] == {"replicas": 2, "selector": "app=a"}
