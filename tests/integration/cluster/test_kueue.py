"""A run that Kueue admits as a whole: it waits, comes up on the flavors' nodes, and goes when it is evicted."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.resources import RESOURCES, WATCHED, Ref
from services.common.errors import NotFound
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, api_time, running
from tests.unit.orchestrator.cluster.objects import RUN, changed

QUEUED = changed(RUN, queueing={"queueName": "team"})


def crd(kind: str, *, namespaced: bool) -> dict[str, Any]:
    """One of Kueue's kinds, with a schema that takes anything."""
    group, _, version = RESOURCES[kind].api_version.partition("/")
    plural = RESOURCES[kind].plural
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [served],
        },
    }


@pytest.fixture
def queued(harness: Harness, faulty: KubeServer) -> Harness:
    """A cluster with Kueue, and a run that waits in its queue."""
    if not harness.api.serves("Workload"):
        faulty.create(crd("Workload", namespaced=True))
        faulty.create(crd("ResourceFlavor", namespaced=False))
        faulty.create(crd("WorkloadPriorityClass", namespaced=False))
        flavor = {"nodeLabels": {"gpu": "h100"}}
        faulty.create(
            {
                "apiVersion": RESOURCES["ResourceFlavor"].api_version,
                "kind": "ResourceFlavor",
                "metadata": {"name": "h100"},
                "spec": flavor,
            }
        )
    assert harness.api.serves("Workload")
    harness.kinds = (*WATCHED, "Workload")
    harness.submit(QUEUED)
    harness.settle()
    return harness


def admit(harness: Harness, **conditions: str) -> None:
    """What Kueue writes."""
    assignments = [{"name": "policy", "flavors": {"nvidia.com/gpu": "h100"}}]
    listed = [
        {"type": kind, "status": status, "reason": "Test", "message": "", "lastTransitionTime": api_time()}
        for kind, status in conditions.items()
    ]
    status = {"conditions": listed, "admission": {"clusterQueue": "all", "podSetAssignments": assignments}}
    harness.api.merge(Ref("Workload", harness.namespace, "helpful"), {"status": status}, "kueue", "status")


def test_it_waits_for_all_roles_together(queued: Harness) -> None:
    """One Workload; until it is admitted no replica and no Job."""
    sets = queued.get("Workload", "helpful")["spec"]["podSets"]
    assert [each["name"] for each in sets] == ["policy", "reference", "reward", "learner"]
    assert queued.names("Job") == set()
    assert queued.replicas("helpful-policy") == 0
    assert queued.conditions()["Progressing"] == ("True", "Queued")


def test_admitted_it_comes_up_where_kueue_says_and_evicted_it_goes(queued: Harness) -> None:
    """The flavor's labels are in the node selector of its pods."""
    admit(queued, Admitted="True")
    queued.settle()
    assert queued.names("Job") == {"helpful-learner-1"}
    assert queued.replicas("helpful-policy") == 1
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}
    admit(queued, Admitted="False", Evicted="True")
    queued.settle()
    assert queued.names("Job") == set()
    assert queued.replicas("helpful-policy") == 0
    admit(queued, Admitted="True", Evicted="False")
    queued.settle()
    assert queued.names("Job") == {"helpful-learner-2"}
    assert queued.replicas("helpful-policy") == 1


def test_evicted_with_its_quota_it_waits_anew_once_its_pods_are_gone(queued: Harness) -> None:
    """Kueue leaves what a Workload of ours reserves: while a pod is there it stays, then another is made."""
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    first = uid(queued)
    pod = queued.add_pod(queued.get("Deployment", "helpful-policy"), "helpful-policy-0", running())
    admit(queued, QuotaReserved="True", Admitted="True", Evicted="True")
    queued.settle()
    assert queued.replicas("helpful-policy") == 0
    assert uid(queued) == first
    queued.api.delete(Ref.of(pod), grace_seconds=0)
    queued.settle()
    assert uid(queued) not in ("", first)
    assert "status" not in queued.get("Workload", "helpful")
    assert queued.conditions()["Progressing"] == ("True", "Queued")
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    assert queued.names("Job") == {"helpful-learner-2"}


def test_suspended_it_gives_its_quota_back_and_waits_anew_when_it_goes_on(queued: Harness) -> None:
    """No Workload while suspended, and none is made; another when it is to go on."""
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    first = uid(queued)
    queued.change({"suspend": True})
    queued.settle()
    assert uid(queued) == ""
    assert queued.conditions()["Available"] == ("False", "Suspended")
    queued.change({"suspend": False})
    queued.settle()
    assert uid(queued) not in ("", first)
    assert queued.names("Job") == set()
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    assert queued.names("Job") == {"helpful-learner-2"}


def test_finished_it_gives_its_quota_back(queued: Harness) -> None:
    """Its Workload goes, and the run stays as it ended."""
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    queued.end_job("helpful-learner-1", "Complete")
    queued.settle()
    assert uid(queued) == ""
    assert queued.conditions()["Finished"] == ("True", "Succeeded")
    assert queued.settle() == []


def test_a_priority_class_gives_its_number(queued: Harness, faulty: KubeServer) -> None:
    """Kueue wants it beside the name; a class that is not there is told until it is."""
    queued.change({"suspend": True})
    queued.settle()
    queued.change({"suspend": False, "queueing": {"queueName": "team", "priorityClass": "high"}})
    with pytest.raises(NotFound):
        queued.reconcile()
    assert queued.conditions()["Degraded"] == ("True", "Refused")
    faulty.create(
        {
            "apiVersion": RESOURCES["WorkloadPriorityClass"].api_version,
            "kind": "WorkloadPriorityClass",
            "metadata": {"name": "high"},
            "value": 7,
        }
    )
    queued.settle()
    spec = queued.get("Workload", "helpful")["spec"]
    assert (spec["priorityClassName"], spec["priority"]) == ("high", 7)
    assert queued.conditions()["Degraded"] == ("False", "AsExpected")


def uid(harness: Harness) -> str:
    """Of the run's Workload; empty: it has none."""
    found = harness.find("Workload", "helpful")
    return "" if found is None else str(found["metadata"]["uid"])


def test_a_flavor_that_may_not_be_read_is_told(queued: Harness, faulty: KubeServer) -> None:
    """Its pods come up without its labels, and Degraded says so (with an Event) until the right is there."""
    faulty.calls.fail(1, 403, verb="get", resource="resourceflavors.kueue.x-k8s.io")
    admit(queued, Admitted="True")
    queued.settle()
    assert queued.conditions()["Degraded"] == ("True", "FlavorForbidden")
    assert "FlavorForbidden" in [reason for reason, _ in queued.events()]
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert "nodeSelector" not in template["spec"]
    queued.clock.advance(301)
    queued.settle()
    assert queued.conditions()["Degraded"] == ("False", "AsExpected")
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}
