"""A RewardModel: its objects, its number, its status, its end."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.control.service_meter import ServiceFigures
from services.common.errors import Forbidden
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, eventually, running
from tests.unit.orchestrator.cluster.objects import MODEL, RUN, changed

DIGEST = "blake3:" + "0" * 64
OTHER = "blake3:" + "1" * 64


def start(harness: Harness, model: dict[str, Any] = MODEL) -> None:
    harness.submit(model)
    harness.settle("hh", "RewardModel")


def test_a_model_gets_its_objects_and_says_where_it_is(harness: Harness) -> None:
    """Everything is called as it is; status has address and selector; a second reconcile writes nothing."""
    start(harness)
    assert harness.names("Deployment") == {"hh"}
    assert harness.names("Service") == {"hh"}
    status = harness.get("RewardModel", "hh")["status"]
    assert status["address"] == f"hh.{harness.namespace}.svc:50053"
    assert status["selector"] == "trimtab.dev/reward-model=hh"
    before = harness.at_rest()
    harness.settle("hh", "RewardModel")
    harness.restart()
    assert harness.settle("hh", "RewardModel") == []
    assert harness.at_rest() == before or harness.real


def test_numbers(harness: Harness) -> None:
    """Static holds, External is whoever scales, Auto keeps its least."""
    start(harness, changed(MODEL, replicas=2))
    harness.kubectl_scale("hh", 5)
    harness.settle("hh", "RewardModel")
    assert harness.replicas("hh") == 2
    harness.change({"scaling": {"mode": "External"}}, "hh", "RewardModel")
    harness.kubectl_scale("hh", 5)
    harness.settle("hh", "RewardModel")
    assert harness.replicas("hh") == 5
    harness.change({"scaling": {"mode": "Auto", "min": 6, "max": 8}}, "hh", "RewardModel")
    harness.settle("hh", "RewardModel")
    assert harness.replicas("hh") == 6
    assert harness.conditions("hh", "RewardModel")["ScalingReady"] == ("False", "StandsStill")


def test_another_model_than_the_pinned_one_is_not_available(harness: Harness, faulty: KubeServer) -> None:
    """Unknown until a replica has said what it serves; a swap is seen and told with both digests."""
    start(harness, changed(MODEL, digest=DIGEST))
    serve(harness)
    assert measured(harness)["Available"] == ("Unknown", "DigestUnknown")
    assert measured(harness, DIGEST)["Available"] == ("True", "Serving")
    assert measured(harness)["Available"] == ("True", "Serving"), "one lost scrape is no news"
    assert measured(harness, OTHER)["Available"] == ("False", "DigestMismatch")
    assert harness.conditions("hh", "RewardModel")["Degraded"] == ("True", "DigestMismatch")
    assert harness.get("RewardModel", "hh")["status"]["digest"] == OTHER.partition(":")[2]


def test_what_is_pinned_is_not_known_of_a_service_that_answers_nobody(
    harness: Harness, faulty: KubeServer
) -> None:
    """A restart of the operator keeps what status says; a page without the model takes it back."""
    start(harness, changed(MODEL, digest=DIGEST))
    serve(harness)
    assert measured(harness, DIGEST)["Available"] == ("True", "Serving")
    harness.restart()
    harness.settle("hh", "RewardModel")
    assert harness.conditions("hh", "RewardModel")["Available"] == ("True", "Serving")
    assert measured(harness)["Available"] == ("Unknown", "DigestUnknown")


def serve(harness: Harness) -> None:
    """One replica is ready."""
    harness.add_pod(harness.get("Deployment", "hh"), "hh-0", running())
    ready = {"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    harness.api.merge(Ref("Deployment", harness.namespace, "hh"), {"status": ready}, "test", "status")


def measured(harness: Harness, digest: str = "") -> dict[str, tuple[str, str]]:
    """The conditions after a scrape in which hh-0 names this digest, or does not answer."""
    figures = ServiceFigures(
        busy_seconds=0, rows=0, digests={"hh": digest.partition(":")[2], "shadow": OTHER}
    )
    harness.probe.services_say = {"hh-0": figures} if digest else {}
    harness.look()
    harness.services.handle(Ref("RewardModel", harness.namespace, "hh"))
    harness.settle("hh", "RewardModel")
    return harness.conditions("hh", "RewardModel")


def test_it_counts_the_runs_that_refer_to_it(harness: Harness) -> None:
    """Runs of its own namespace, and those that name it."""
    refers = changed(RUN, rewards=[{"stage": "reward", "rewardModelRef": {"name": "hh"}}])
    harness.submit(refers)
    start(harness)
    assert harness.get("RewardModel", "hh")["status"]["runs"] == 1


def test_what_the_server_refuses_is_told(harness: Harness, faulty: KubeServer) -> None:
    """A quota, a webhook, a right that is missing: Degraded in the server's words, until it is mended."""
    harness.submit(MODEL)
    faulty.calls.fail(1, 403, verb="patch", resource="deployments.apps")
    with pytest.raises(Forbidden):
        harness.reconcile("hh", "RewardModel")
    assert harness.conditions("hh", "RewardModel")["Degraded"] == ("True", "Refused")
    harness.settle("hh", "RewardModel")
    assert harness.conditions("hh", "RewardModel")["Degraded"] == ("False", "AsExpected")


def test_delete_leaves_nothing_behind(harness: Harness) -> None:
    """All its objects, then itself."""
    start(harness)
    harness.api.delete(Ref("RewardModel", harness.namespace, "hh"))

    def ended() -> bool:
        harness.reconcile("hh", "RewardModel")
        return harness.find("RewardModel", "hh") is None

    eventually(ended)
    eventually(lambda: not harness.versions())
