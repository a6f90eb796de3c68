"""A run that Kueue admits as a whole: it waits, comes up on the flavors' nodes, and goes when it is evicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.connect import connect
from orchestrator.cluster.control.resources import (
    KUEUE_VERSION,
    RESOURCES,
    WATCHED,
    Ref,
    resources_with,
)
from orchestrator.cluster.operator.config import LeaseSpec, OperatorConfig
from orchestrator.cluster.operator.manager import Operator
from services.common.errors import NotFound
from tests.fakes.kube import KubeServer
from tests.fakes.probe import FakeProbe
from tests.integration.cluster.conftest import serve_crds
from tests.integration.cluster.harness import Harness, api_time, eventually, running
from tests.unit.orchestrator.cluster.objects import RUN, changed

QUEUED = changed(RUN, queueing={"queueName": "team"})


def crd(kind: str, *, namespaced: bool, version: str = KUEUE_VERSION) -> dict[str, Any]:
    """One of Kueue's kinds, with a schema that takes anything."""
    group = RESOURCES[kind].api_version.partition("/")[0]
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


def is_served(api: Api) -> bool:
    """Whether the server has Kueue's kinds."""
    try:
        api.list("Workload")
    except NotFound:
        return False
    return True


@pytest.fixture
def queued(harness: Harness, faulty: KubeServer) -> Harness:
    """A cluster with Kueue, and a run that waits in its queue."""
    if not is_served(harness.api):
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
    assert is_served(harness.api)
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
    assert queued.conditions()["Degraded"] == ("True", "FlavorUnread")
    assert "FlavorUnread" in [reason for reason, _ in queued.events()]
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert "nodeSelector" not in template["spec"]
    queued.clock.advance(301)
    queued.settle()
    assert queued.conditions()["Degraded"] == ("False", "AsExpected")
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}


def test_a_flavor_that_is_not_there_any_more_is_told_and_rolls_no_pods(
    queued: Harness, faulty: KubeServer
) -> None:
    """Its labels stay what they were, so that pods stay where Kueue has placed them; Degraded says it."""
    admit(queued, Admitted="True")
    queued.settle()
    before = queued.get("Deployment", "helpful-policy")["spec"]
    faulty.calls.fail(1, 404, verb="get", resource="resourceflavors.kueue.x-k8s.io")
    queued.clock.advance(301)
    queued.settle()
    assert queued.conditions()["Degraded"] == ("True", "FlavorUnread")
    assert queued.get("Deployment", "helpful-policy")["spec"] == before


def test_who_cannot_see_workloads_leaves_an_admitted_run_as_it_is(queued: Harness) -> None:
    """No Job goes, nothing is scaled, whatever else is changed; Degraded says why until they are seen again."""
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    told = queued.conditions()
    queued.kinds = WATCHED
    queued.restart()
    queued.change({"steps": 99})
    queued.settle()
    assert queued.names("Job") == {"helpful-learner-1"}
    assert queued.replicas("helpful-policy") == 1
    template = queued.get("Deployment", "helpful-policy")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert queued.conditions() == told | {"Degraded": ("True", "KueueUnseen")}
    queued.kinds = (*WATCHED, "Workload")
    queued.settle()
    assert queued.conditions()["Degraded"] == ("False", "AsExpected")
    assert queued.names("Job") == {"helpful-learner-1"}


def test_a_new_run_whose_workloads_cannot_be_seen_says_so_and_nothing_is_made(harness: Harness) -> None:
    """It is Queued and Degraded, and once Workloads are known to be seen it goes on."""
    harness.submit(QUEUED)
    harness.settle()
    assert harness.conditions()["Progressing"] == ("True", "Queued")
    assert harness.conditions()["Degraded"] == ("True", "KueueUnseen")
    assert harness.names("Deployment") == set()


@pytest.mark.parametrize("how", ["suspended", "finished"])
def test_who_cannot_see_workloads_still_lets_a_run_come_to_rest(queued: Harness, how: str) -> None:
    """Suspend and a learner that ends well need no answer of Kueue's."""
    admit(queued, QuotaReserved="True", Admitted="True")
    queued.settle()
    queued.kinds = WATCHED
    queued.restart()
    if how == "suspended":
        queued.change({"suspend": True})
    else:
        queued.end_job("helpful-learner-1", "Complete")
    queued.settle()
    assert queued.replicas("helpful-policy") == 0
    assert queued.conditions()["Available"] == ("False", how.capitalize())
    assert uid(queued)


# ------------------------------------------------------------ the operator as it runs


@contextmanager
def operator_of(server: KubeServer, folder: Path, version: str) -> Iterator[Harness]:
    """An operator on a server of its own; the harness only looks, and does what a user and Kueue would."""
    client = connect(server.kubeconfig(folder / "config"))
    serve_crds(client)
    harness = Harness(client, "default")
    harness.api = harness.api.speaking(resources_with(version))
    config = OperatorConfig.model_validate(
        {
            "resync_seconds": 5,
            "status_seconds": 0.1,
            "lease": LeaseSpec(enabled=False),  # type: ignore[call-arg]
            "render": {"kueue_version": version},
        }
    )
    operator = Operator(config, Api(client), FakeProbe())
    operator.start()
    try:
        yield harness
    finally:
        operator.stop()


def test_kueue_may_be_installed_later(tmp_path: Path) -> None:
    """Until then a run with a queue says what is missing, others train; afterwards it waits for Kueue and comes up."""
    with KubeServer() as server, operator_of(server, tmp_path, "v1beta2") as harness:
        harness.submit(QUEUED)
        harness.submit({**RUN, "metadata": {"name": "other"}})
        eventually(lambda: "other-learner-1" in harness.names("Job"))
        eventually(lambda: harness.conditions().get("Degraded") == ("True", "KueueUnseen"))
        server.create(crd("Workload", namespaced=True, version="v1beta2"))
        eventually(lambda: harness.find("Workload", "helpful"))
        admit(harness, Admitted="True")
        eventually(lambda: "helpful-learner-1" in harness.names("Job"))
        eventually(lambda: harness.conditions()["Degraded"][1] != "KueueUnseen")
        assert harness.get("Workload", "helpful")["apiVersion"] == "kueue.x-k8s.io/v1beta2"


def test_a_server_that_does_not_answer_for_workloads_is_asked_again(tmp_path: Path) -> None:
    """Errors at the start are no answer: what Kueue admits later comes up."""
    with KubeServer() as server:
        server.create(crd("Workload", namespaced=True))
        server.calls.fail(4, 503, verb="list", resource="workloads.kueue.x-k8s.io")
        with operator_of(server, tmp_path, KUEUE_VERSION) as harness:
            harness.submit(QUEUED)
            eventually(lambda: harness.find("Workload", "helpful"))
            admit(harness, Admitted="True")
            eventually(lambda: "helpful-learner-1" in harness.names("Job"))
