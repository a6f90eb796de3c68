"""Lists: selectors, pages, versions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kube.cluster import Cluster, Refused, version
from tests.contract.kube.objects import config_map, pod, widget


def labelled(name: str, **labels: str) -> dict[str, Any]:
    made = config_map(name)
    made["metadata"]["labels"] = labels
    return made


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Three ConfigMaps, two with a tier."""
    cluster.create(labelled("a", app="x", tier="1"))
    cluster.create(labelled("b", app="x", tier="2"))
    cluster.create(labelled("c", app="y"))
    return cluster


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=x", ["a", "b"]),
        ("app==x,tier=1", ["a"]),
        ("app!=x", ["c"]),
        ("app in (x, y),tier notin (1)", ["b", "c"]),
        ("tier", ["a", "b"]),
        ("!tier", ["c"]),
        ("app=x,tier!=1", ["b"]),
        ("app=z", []),
    ],
)
def test_labels_select(three: Cluster, selector: str, found: list[str]) -> None:
    """Equality and sets; all terms must hold."""
    # A real cluster's controllers put certificates of authorities there.
    listed = three.names("ConfigMap", labelSelector=selector)
    names = [name for name in listed if not name.endswith("-ca.crt")]
    assert names == found


def test_a_selector_that_is_none_is_refused(three: Cluster) -> None:
    """400."""
    with pytest.raises(Refused) as refused:
        three.listed("ConfigMap", labelSelector="app in x")
    assert refused.value.code == 400


def test_fields_select(three: Cluster) -> None:
    """By name everywhere, by phase and node for pods."""
    assert three.names("ConfigMap", fieldSelector="metadata.name=b") == ["b"]
    three.create(pod("p"))
    assert three.names("Pod", fieldSelector="status.phase=Pending,spec.nodeName=") == ["p"]
    assert three.names("Pod", fieldSelector="status.phase!=Pending") == []


def test_a_field_that_cannot_be_selected_by_is_refused(three: Cluster) -> None:
    """400, so that nobody takes all for some."""
    with pytest.raises(Refused) as refused:
        three.listed("Pod", fieldSelector="spec.foo=1")
    assert refused.value.code == 400


def test_a_list_knows_its_version_and_kind(three: Cluster) -> None:
    """Items are in the order of their names."""
    found = three.listed("ConfigMap")
    assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1")
    versions = [int(version(each)) for each in found["items"]]
    assert int(found["metadata"]["resourceVersion"]) >= max(versions)
    names = [each["metadata"]["name"] for each in found["items"]]
    assert names == sorted(names)


def test_pages_are_of_one_state(cluster: Cluster) -> None:
    """What is made or deleted meanwhile does not show."""
    for name in "abcde":
        cluster.create(widget(name))
    first = cluster.listed("Widget", limit=2)
    cluster.create(widget("c2"))
    cluster.delete("Widget", "d")
    seen, page = first["items"], first
    while page["metadata"].get("continue"):
        page = cluster.listed("Widget", **{"limit": 2, "continue": page["metadata"]["continue"]})
        assert version(page) == version(first)
        seen = seen + page["items"]
    assert [each["metadata"]["name"] for each in seen] == list("abcde")
    assert first["metadata"]["remainingItemCount"] == 3


def test_all_namespaces_are_listed_together(three: Cluster) -> None:
    """The collection without a namespace."""
    found = three.call("GET", "/api/v1/configmaps", labelSelector="app=x")
    spaces = {each["metadata"]["namespace"] for each in found["items"]}
    assert three.namespace in spaces


def test_a_version_that_is_not_there_yet_is_refused(three: Cluster) -> None:
    """Too large: the client has spoken to a server that knew more."""
    far = int(version(three.listed("Widget"))) + 10_000_000
    with pytest.raises(Refused) as refused:
        three.listed("Widget", resourceVersion=far, timeoutSeconds=1)
    assert refused.value.code == 504
