"""A RewardModel: its objects, its number, its status, its end."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.control.resources import Ref
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
    """The digest is asked of each replica; a wrong one is Degraded, with both digests."""
    start(harness, changed(MODEL, digest=DIGEST))
    harness.probe.digest = OTHER
    harness.add_pod(harness.get("Deployment", "hh"), "hh-0", running())
    harness.settle("hh", "RewardModel")
    assert harness.conditions("hh", "RewardModel")["Degraded"] == ("True", "DigestMismatch")
    assert harness.get("RewardModel", "hh")["status"]["digest"] == OTHER


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
