"""Server-side apply: who owns what, what conflicts, what goes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kube.cluster import Cluster, Object, Refused, managers, version
from tests.contract.kube.objects import config_map, deployment, widget


def bare(**spec: Any) -> Object:
    """A widget that states only this."""
    return widget("a") | {"spec": spec}


def test_an_apply_creates_and_owns_what_it_states(cluster: Cluster) -> None:
    """And nothing that was defaulted."""
    made = cluster.apply(bare(size=1, items=[{"name": "x", "value": "1"}], tags=["t"], words=["w"]), "one")
    assert made["spec"]["colour"] == "red"
    assert managers(made) == {
        ("one", "Apply", ""): {
            "f:spec": {
                "f:size": {},
                "f:items": {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:value": {}}},
                "f:tags": {'v:"t"': {}},
                "f:words": {},
            }
        }
    }


def test_a_second_apply_changes_nothing(cluster: Cluster) -> None:
    """Neither the version nor a time."""
    sent = bare(
        size=1, items=[{"name": "x", "value": "1"}], nested={"note": "n"}, free={"any": {"depth": [1]}}
    )
    first = cluster.apply(sent, "one")
    assert cluster.apply(sent, "one") == first


def test_a_field_of_another_manager_conflicts_by_name(cluster: Cluster) -> None:
    """409 with a cause for each field; nothing is written."""
    first = cluster.apply(bare(size=1, colour="red"), "one")
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=2, colour="green"), "two")
    status = refused.value.status
    assert (refused.value.code, status["reason"]) == (409, "Conflict")
    assert sorted(refused.value.causes) == [
        ("FieldManagerConflict", ".spec.colour"),
        ("FieldManagerConflict", ".spec.size"),
    ]
    assert status["details"]["causes"][0]["message"] == 'conflict with "one"'
    assert status["message"].startswith('Apply failed with 2 conflicts: conflicts with "one":')
    assert cluster.get("Widget", "a") == first


def test_one_conflict_is_said_in_one_line(cluster: Cluster) -> None:
    """As people see it."""
    cluster.apply(bare(size=1), "one")
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=2), "two")
    assert refused.value.status["message"] == 'Apply failed with 1 conflict: conflict with "one": .spec.size'


def test_a_forced_apply_takes_the_field(cluster: Cluster) -> None:
    """Its former owner has it no longer, and keeps the rest."""
    cluster.apply(bare(size=1, colour="red"), "one")
    made = cluster.apply(bare(size=2), "two", force=True)
    assert made["spec"]["size"] == 2
    assert managers(made) == {
        ("one", "Apply", ""): {"f:spec": {"f:colour": {}}},
        ("two", "Apply", ""): {"f:spec": {"f:size": {}}},
    }


def test_the_same_value_is_shared(cluster: Cluster) -> None:
    """No conflict; when one gives it up, the other keeps it."""
    cluster.apply(bare(size=1, colour="green"), "one")
    made = cluster.apply(bare(size=1, colour="green"), "two")
    assert len(managers(made)) == 2
    assert cluster.apply(bare(size=1), "one")["spec"]["colour"] == "green"
    assert cluster.apply(bare(size=1), "two")["spec"]["colour"] == "red"  # the default


def test_what_is_no_longer_stated_goes(cluster: Cluster) -> None:
    """Fields, elements of keyed lists, of sets, keys of maps."""
    cluster.apply(
        bare(size=1, most=9, items=[{"name": "x"}, {"name": "y"}], tags=["s", "t"], limits={"a": 1, "b": 2}),
        "one",
    )
    made = cluster.apply(bare(size=1, items=[{"name": "y"}], tags=["t"], limits={"b": 2}), "one")
    assert "most" not in made["spec"]
    assert made["spec"]["items"] == [{"name": "y"}]
    assert made["spec"]["tags"] == ["t"]
    assert made["spec"]["limits"] == {"b": 2}


def test_what_others_put_into_a_list_or_map_stays(cluster: Cluster) -> None:
    """Two managers, one list."""
    cluster.apply(bare(size=1, items=[{"name": "x", "value": "1"}], limits={"a": 1}), "one")
    made = cluster.apply(bare(size=1, items=[{"name": "y", "value": "2"}], limits={"b": 2}), "two")
    assert [each["name"] for each in made["spec"]["items"]] == ["x", "y"]
    made = cluster.apply(bare(size=1), "one")
    assert made["spec"]["items"] == [{"name": "y", "value": "2"}]
    assert made["spec"]["limits"] == {"b": 2}


def test_an_element_can_have_two_owners(cluster: Cluster) -> None:
    """Each of some of its fields."""
    cluster.apply(bare(size=1, items=[{"name": "x", "value": "1"}]), "one")
    made = cluster.apply(bare(size=1, items=[{"name": "x", "weight": 5}]), "two")
    assert made["spec"]["items"] == [{"name": "x", "value": "1", "weight": 5}]
    assert cluster.apply(bare(size=1, items=[]), "one")["spec"]["items"] == [{"name": "x", "weight": 5}]


def test_a_list_without_keys_is_owned_as_a_whole(cluster: Cluster) -> None:
    """A change of one element is a conflict over all."""
    cluster.apply(bare(size=1, words=["a", "b"]), "one")
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=1, words=["a"]), "two")
    assert refused.value.causes == [("FieldManagerConflict", ".spec.words")]


def test_an_update_takes_what_it_changes(cluster: Cluster) -> None:
    """Whoever had it; and the applier then conflicts with it."""
    cluster.apply(bare(size=1, colour="red"), "one")
    made = cluster.patch("Widget", "a", {"spec": {"size": 2}}, fieldManager="hand")
    assert managers(made)["hand", "Update", ""] == {"f:spec": {"f:size": {}}}
    assert managers(made)["one", "Apply", ""] == {"f:spec": {"f:colour": {}}}
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=1, colour="red"), "one")
    cause = refused.value.status["details"]["causes"][0]
    assert cause["message"] == 'conflict with "hand" using contract.trimtab.dev/v1'


def test_the_same_name_applying_and_updating_are_two(cluster: Cluster) -> None:
    """Ownership is by name and operation."""
    cluster.create(widget("a"), fieldManager="one")
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=2), "one")
    assert refused.value.causes == [("FieldManagerConflict", ".spec.size")]


def test_a_field_that_an_update_takes_away_is_nobodys(cluster: Cluster) -> None:
    """And comes back with the next apply."""
    cluster.apply(bare(size=1, most=9), "one")
    made = cluster.patch("Widget", "a", {"spec": {"most": None}}, fieldManager="hand")
    assert "f:most" not in managers(made)["one", "Apply", ""]["f:spec"]
    assert cluster.apply(bare(size=1, most=9), "one")["spec"]["most"] == 9


def test_replicas_that_an_apply_drops_fall_back(cluster: Cluster) -> None:
    """Which is why the operator never applies them: dropped, they are 1 again."""
    cluster.apply(deployment("a", replicas=0), "one")
    without = deployment("a")
    del without["spec"]["replicas"]
    # A dry run: nothing shall start on a real cluster.
    assert cluster.apply(without, "one", dryRun="All")["spec"]["replicas"] == 1


def test_replicas_set_at_creation_by_another_manager_are_left_alone(cluster: Cluster) -> None:
    """An applier that never stated them does not touch them."""
    cluster.apply(deployment("a", replicas=0), "creator")
    without = deployment("a")
    del without["spec"]["replicas"]
    made = cluster.apply(without, "operator")
    assert made["spec"]["replicas"] == 0
    assert "f:replicas" not in managers(made)["operator", "Apply", ""]["f:spec"]


def test_containers_and_their_lists_merge_by_key(cluster: Cluster) -> None:
    """Containers by name, ports by number and protocol, variables by name."""
    sent = deployment("a")
    container = sent["spec"]["template"]["spec"]["containers"][0]
    container |= {"ports": [{"containerPort": 80, "name": "http"}], "env": [{"name": "A", "value": "1"}]}
    cluster.apply(sent, "one")
    other = deployment("a")
    other["spec"]["template"]["spec"]["containers"] = [
        {"name": "main", "env": [{"name": "B", "value": "2"}]},
        {"name": "side", "image": "registry.k8s.io/pause:3.10"},
    ]
    made = cluster.apply(other, "two")
    containers = made["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in containers] == ["main", "side"]
    assert containers[0]["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    fields = managers(made)["one", "Apply", ""]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert 'k:{"containerPort":80,"protocol":"TCP"}' in fields['k:{"name":"main"}']["f:ports"]


def test_an_update_of_an_atomic_map_takes_it_whole(cluster: Cluster) -> None:
    """A Deployment's selector and a pod's nodeSelector are atomic."""
    sent = deployment("a")
    sent["spec"]["template"]["spec"]["nodeSelector"] = {"a": "1"}
    cluster.apply(sent, "one")
    change = {"spec": {"template": {"spec": {"nodeSelector": {"b": "2"}}}}}
    made = cluster.patch("Deployment", "a", change, fieldManager="hand")
    assert made["spec"]["template"]["spec"]["nodeSelector"] == {"a": "1", "b": "2"}
    assert "f:nodeSelector" not in managers(made)["one", "Apply", ""]["f:spec"]["f:template"]["f:spec"]


def test_labels_have_an_owner_each(cluster: Cluster) -> None:
    """metadata is applied like the rest."""
    sent = config_map("a", x="1")
    sent["metadata"]["labels"] = {"one": "1"}
    cluster.apply(sent, "one")
    cluster.patch("ConfigMap", "a", {"metadata": {"labels": {"two": "2"}}}, fieldManager="hand")
    sent["metadata"]["labels"] = {}
    assert cluster.apply(sent, "one")["metadata"]["labels"] == {"two": "2"}


def test_an_apply_of_a_field_that_the_type_does_not_have_is_refused(cluster: Cluster) -> None:
    """A typing mistake is never silently dropped."""
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=1, sise=2), "one")
    assert ".spec.sise: field not declared in schema" in refused.value.status["message"]
    assert cluster.is_gone("Widget", "a")


def test_an_apply_needs_a_manager(cluster: Cluster) -> None:
    """Without a name nobody could own anything."""
    with pytest.raises(Refused) as refused:
        cluster.patch("Widget", "a", bare(size=1), "application/apply-patch+yaml")
    assert refused.value.code in (400, 422)


def test_an_apply_on_an_old_version_is_refused(cluster: Cluster) -> None:
    """Optimistic locking, where it is asked for."""
    first = cluster.apply(bare(size=1), "one")
    cluster.apply(bare(size=2), "one")
    sent = bare(size=3)
    sent["metadata"] = {"name": "a", "resourceVersion": version(first)}
    with pytest.raises(Refused) as refused:
        cluster.apply(sent, "one")
    assert refused.value.code == 409


def test_an_apply_that_is_not_valid_is_refused(cluster: Cluster) -> None:
    """As any other write."""
    with pytest.raises(Refused) as refused:
        cluster.apply(bare(size=1000), "one")
    assert refused.value.code == 422
