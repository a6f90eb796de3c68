"""What the cache holds of one owner, sorted; what Kueue says."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.view import admitted, assigned_flavors, view_of
from orchestrator.cluster.names import RunNames


def item(kind: str, name: str, service: str = "", **more: Any) -> dict[str, Any]:
    labels = {"trimtab.dev/run": "helpful", **({"trimtab.dev/service": service} if service else {})}
    return {"kind": kind, "metadata": {"name": name, "labels": labels}, **more}


def test_everything_has_its_place() -> None:
    """Deployments by name, pods by service, Jobs before RL by stage, the learner's apart."""
    owned = [
        item("Deployment", "helpful-policy", "policy"),
        item("Pod", "p", "policy"),
        item("Pod", "helpful-learner-1-0-x", "learner", status={"phase": "Failed"}),
        item("Job", "helpful-learner-1", "learner"),
        item("Job", "helpful-sft", "sft"),
        item("Workload", "helpful"),
    ]
    view = view_of(owned, RunNames("helpful", "ns"))
    assert set(view.deployments) == {"helpful-policy"}
    assert [pod.name for pod in view.pods_of("policy")] == ["p"]
    assert [job.name for job in view.learner] == ["helpful-learner-1"]
    assert view.learner[0].message == "the pod failed"
    assert set(view.before_rl or {}) == {"sft"}
    assert view.workload is owned[-1]
    assert view.object_of("Pod", "p") is owned[1]
    assert view.object_of("Pod", "q") is None


@pytest.mark.parametrize(
    ("conditions", "is_admitted"),
    [
        ({}, False),
        ({"QuotaReserved": "True"}, False),
        ({"QuotaReserved": "True", "Admitted": "True"}, True),
        ({"Admitted": "True", "Evicted": "True"}, False),
        ({"Admitted": "True", "Evicted": "False"}, True),
    ],
)
def test_admission(conditions: dict[str, str], is_admitted: bool) -> None:
    """Quota alone is not enough, and who is evicted has to go."""
    listed = [{"type": kind, "status": status} for kind, status in conditions.items()]
    assert admitted({"status": {"conditions": listed}}) is is_admitted
    assert not admitted(None)


def test_flavors_of_each_set_of_pods() -> None:
    """Each once, in the order of resources."""
    sets = [{"name": "policy", "flavors": {"cpu": "a100", "memory": "a100", "nvidia.com/gpu": "a100-gpu"}}]
    workload = {"status": {"admission": {"podSetAssignments": sets}}}
    assert assigned_flavors(workload) == {"policy": ("a100", "a100-gpu")}
    assert assigned_flavors(None) == {}
