"""Whether a run's Workload is to be there."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.queueing import holds_quota, keeps_workload, priority_kept
from orchestrator.cluster.control.view import View, view_of
from orchestrator.cluster.names import RunNames

JOB = {"kind": "Job", "metadata": {"name": "helpful-learner-1", "labels": {"trimtab.dev/service": "learner"}}}
EVICTED = ("QuotaReserved", "Admitted", "Evicted")


def pod(service: str, phase: str = "Running") -> dict[str, Any]:
    labels = {"trimtab.dev/service": service}
    return {"kind": "Pod", "metadata": {"name": f"{service}-0", "labels": labels}, "status": {"phase": phase}}


def deployment(replicas: int, there: int = 0) -> dict[str, Any]:
    metadata = {"name": "helpful-policy", "labels": {"trimtab.dev/service": "policy"}}
    status = {"replicas": there}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}, "status": status}


def workload(*conditions: str, **spec: Any) -> dict[str, Any]:
    listed = [{"type": kind, "status": "True"} for kind in conditions]
    metadata = {"name": "helpful"}
    return {"kind": "Workload", "metadata": metadata, "spec": spec, "status": {"conditions": listed}}


def seen(*owned: dict[str, Any]) -> View:
    return view_of(owned, RunNames("helpful", "ns"))


@pytest.mark.parametrize("left", [pod("policy"), deployment(1), deployment(0, there=1), JOB])
def test_what_uses_the_quota_keeps_it(left: dict[str, Any]) -> None:
    """A pod, one that is to come and a Job that is not over: the Workload stays, whatever is wanted of the run."""
    assert keeps_workload(seen(workload(*EVICTED), left), over=False)
    assert keeps_workload(seen(workload("QuotaReserved", "Admitted"), left), over=True)


@pytest.mark.parametrize("left", [[], [pod("learner", "Succeeded")], [pod("redis")], [deployment(0)]])
def test_with_the_last_pod_it_goes(left: list[dict[str, Any]]) -> None:
    """Of a run that was evicted, or is over. The queue's server is not in it, so it may stay."""
    assert not keeps_workload(seen(workload(*EVICTED), *left), over=False)
    assert not keeps_workload(seen(workload("QuotaReserved", "Admitted"), *left), over=True)


def test_a_run_that_wants_to_work_has_one() -> None:
    """None yet, one that waits, one that is admitted, and one whose quota Kueue took back itself."""
    for there in ([], [workload()], [workload("QuotaReserved", "Admitted")], [workload("Evicted")]):
        assert keeps_workload(seen(*there), over=False)


def test_a_run_that_is_over_gets_none() -> None:
    """Neither before its first pod nor while some are left."""
    assert not keeps_workload(seen(), over=True)
    assert not keeps_workload(seen(pod("policy")), over=True)


def test_quota() -> None:
    """Reserved is enough: the spec cannot change any more."""
    assert holds_quota(workload("QuotaReserved"))
    assert not holds_quota(workload("Evicted"))
    assert not holds_quota(None)


@pytest.mark.parametrize("name", [{"priorityClassName": "high"}, {"priorityClassRef": {"name": "high"}}])
def test_a_priority_is_read_once_for_a_class(name: dict[str, Any]) -> None:
    """What was made with a class keeps its number; another class, or no Workload yet, is asked for."""
    wanted = {"spec": {"queueName": "team", **name}}
    assert priority_kept(workload(priority=7, **name), wanted) == 7
    assert priority_kept(workload(priority=7, priorityClassName="low"), wanted) is None
    assert priority_kept(None, wanted) is None
