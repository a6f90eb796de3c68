"""Patches that are no apply."""

from __future__ import annotations

import pytest

from tests.contract.kube.cluster import JSON_PATCH, STRATEGIC, Cluster, Refused
from tests.contract.kube.objects import config_map, deployment, widget


def test_a_merge_patch_joins_objects_and_null_takes_away(cluster: Cluster) -> None:
    """Lists are replaced."""
    cluster.create(widget("a", most=9, words=["a", "b"], nested={"note": "n"}))
    made = cluster.patch("Widget", "a", {"spec": {"most": None, "words": ["c"], "nested": {"depth": 4}}})
    assert "most" not in made["spec"]
    assert made["spec"]["words"] == ["c"]
    assert made["spec"]["nested"] == {"note": "n", "depth": 4}


def test_a_json_patch_is_carried_out_in_order(cluster: Cluster) -> None:
    """Add, replace, remove, test, move, copy; ~1 is a slash."""
    cluster.create(config_map("a", x="1", y="2"))
    made = cluster.patch(
        "ConfigMap", "a",
        [
            {"op": "test", "path": "/data/x", "value": "1"},
            {"op": "add", "path": "/metadata/labels", "value": {}},
            {"op": "add", "path": "/metadata/labels/a~1b", "value": "c"},
            {"op": "move", "from": "/data/y", "path": "/data/z"},
            {"op": "copy", "from": "/data/x", "path": "/data/w"},
            {"op": "replace", "path": "/data/x", "value": "3"},
        ],
        JSON_PATCH,
    )  # fmt: skip
    assert made["data"] == {"x": "3", "z": "2", "w": "1"}
    assert made["metadata"]["labels"] == {"a/b": "c"}


def test_a_json_patch_whose_test_fails_changes_nothing(cluster: Cluster) -> None:
    """422."""
    cluster.create(config_map("a", x="1"))
    change = [
        {"op": "replace", "path": "/data/x", "value": "2"},
        {"op": "test", "path": "/data/x", "value": "9"},
    ]
    with pytest.raises(Refused) as refused:
        cluster.patch("ConfigMap", "a", change, JSON_PATCH)
    assert refused.value.code == 422
    assert cluster.get("ConfigMap", "a")["data"] == {"x": "1"}


def test_a_strategic_patch_joins_lists_by_key(cluster: Cluster) -> None:
    """Containers by name, variables by name."""
    cluster.create(deployment("a"))
    container = {"name": "main", "env": [{"name": "A", "value": "1"}]}
    change = {"spec": {"template": {"spec": {"containers": [container]}}}}
    cluster.patch("Deployment", "a", change, STRATEGIC)
    container["env"] = [{"name": "B", "value": "2"}]
    made = cluster.patch("Deployment", "a", change, STRATEGIC)
    found = made["spec"]["template"]["spec"]["containers"]
    assert len(found) == 1
    assert found[0]["image"] == "registry.k8s.io/pause:3.10"
    assert {each["name"] for each in found[0]["env"]} == {"A", "B"}


def test_a_strategic_patch_can_delete_and_replace(cluster: Cluster) -> None:
    """$patch."""
    sent = deployment("a")
    sent["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "2"},
    ]
    cluster.create(sent)
    container = {"name": "main", "env": [{"name": "A", "$patch": "delete"}]}
    change = {"spec": {"template": {"spec": {"containers": [container]}}}}
    made = cluster.patch("Deployment", "a", change, STRATEGIC)
    assert made["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": "B", "value": "2"}]
    strategy = {"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}}
    assert cluster.patch("Deployment", "a", strategy, STRATEGIC)["spec"]["strategy"] == {"type": "Recreate"}


def test_a_custom_resource_takes_no_strategic_patch(cluster: Cluster) -> None:
    """415: its lists have no strategy."""
    cluster.create(widget("a"))
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"spec": {"size": 2}}, STRATEGIC)
    assert refused.value.code == 415


def test_a_patch_of_what_is_not_there_creates_nothing(cluster: Cluster) -> None:
    """Only an apply does."""
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", {"spec": {"size": 2}})
    assert refused.value.code == 404


def test_a_patch_with_a_version_is_locked_by_it(cluster: Cluster) -> None:
    """409 where the object has moved on."""
    first = cluster.create(widget("a"))
    cluster.patch("Widget", "a", {"spec": {"size": 2}})
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"size": 3}}
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", stale)
    assert refused.value.code == 409


def test_what_says_which_object_it_is_cannot_be_patched(cluster: Cluster) -> None:
    """creationTimestamp and uid stay."""
    first = cluster.create(widget("a"))
    made = cluster.patch("Widget", "a", {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}})
    assert made["metadata"]["creationTimestamp"] == first["metadata"]["creationTimestamp"]
