"""Whether what is there differs from what is wanted."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.cluster.control.changes import (
    APPLIED,
    covers,
    is_current,
    replicas_are_ours_alone,
    stamped,
)
from orchestrator.cluster.render import RunState, render_run
from tests.unit.orchestrator.cluster.objects import run

MANIFESTS = {
    f"{one['kind']}/{one['metadata']['name']}": one for one in render_run(run(), state=RunState(attempt=1))
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_was_applied_is_current(name: str) -> None:
    """Also with what a server adds: status, defaults, other people's annotations."""
    wanted = stamped(MANIFESTS[name])
    there = copy.deepcopy(wanted)
    there["metadata"] |= {"uid": "u", "resourceVersion": "5", "creationTimestamp": "2026-01-01T00:00:00Z"}
    there["metadata"]["annotations"]["theirs"] = "1"
    there["metadata"]["labels"]["theirs"] = "1"
    there["status"] = {"anything": 1}
    there.setdefault("spec", {})["defaulted"] = True
    assert is_current(wanted, there)


def test_another_manifest_is_not_current() -> None:
    """Also where it only leaves out what was applied before: the hash tells."""
    before, after = (
        {"kind": "Service", "metadata": {"name": "a"}, "spec": spec} for spec in ({"a": 1, "b": 2}, {"a": 1})
    )
    assert not is_current(stamped(after), stamped(before))


def test_replicas_are_no_difference() -> None:
    """The manifest that makes a Deployment and the one that updates it count as one."""
    making = {"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 3, "template": {}}}
    updating = {"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"template": {}}}
    assert stamped(making)["metadata"]["annotations"] == stamped(updating)["metadata"]["annotations"]
    assert making["metadata"] == {"name": "a"}, "the manifest itself is not changed"
    assert APPLIED in stamped(making)["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("there", "wanted", "same"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": ""}, True),
        ({}, {"a": {}}, True),
        ({}, {"a": 0}, True),
        ({}, {"a": "x"}, False),
        ({"cpu": "500m"}, {"cpu": "0.5"}, True),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"memory": "1Gi"}, {"memory": "1G"}, False),
        ({"cpu": "1"}, {"cpu": 1}, True),
        ({"e": "1000"}, {"e": "1e3"}, True),
        ([{"name": "a", "x": 1}, {"name": "webhook"}], [{"name": "a", "x": 1}], True),
        ([{"name": "b"}], [{"name": "a"}], False),
        (["a", "b"], ["a"], False),
        (["b", "a"], ["a", "b"], False),
        (
            [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
            [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
            True,
        ),
        (True, True, True),
        ("true", True, False),
    ],
)
def test_each_wanted_field_has_its_value(there: Any, wanted: Any, same: bool) -> None:
    """More is no difference, an empty field is one that is not there, and quantities are compared by value."""
    assert covers(there, wanted) is same


def test_who_owns_replicas() -> None:
    """Ours alone is what an apply would reset; shared, or somebody's update, it would not."""
    owns = {"f:spec": {"f:replicas": {}}}
    ours = {"manager": "op", "operation": "Apply", "fieldsV1": owns}
    scaler = {"manager": "scaler", "operation": "Apply", "fieldsV1": owns}
    other = {"manager": "x", "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}}
    assert replicas_are_ours_alone({"metadata": {"managedFields": [ours, other]}}, "op")
    assert not replicas_are_ours_alone({"metadata": {"managedFields": [ours, scaler]}}, "op")
    assert not replicas_are_ours_alone({"metadata": {"managedFields": [other]}}, "op")
    assert not replicas_are_ours_alone({"metadata": {}}, "op")
