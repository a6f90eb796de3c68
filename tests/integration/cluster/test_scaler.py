"""Auto: what is measured, what is decided, what is written of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds.status import RolloutStatus
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, running
from tests.unit.orchestrator.cluster.objects import RUN, changed

AUTO = changed(
    RUN,
    rollout={"batchGroups": 32, "maxStaleness": 2},
    roles__policy={"scaling": {"mode": "Auto", "min": 1, "max": 8}, "slots": 4},
)
EMPTY = {"policy": 0, "reference": 0, "reward": 0, "learner": 0}


@pytest.fixture
def training(harness: Harness, faulty: KubeServer) -> Harness:
    """A run that trains, one replica of each role."""
    harness.submit(AUTO)
    harness.settle()
    harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-x", running("10.0.0.9"))
    for role in ("policy", "reference", "reward"):
        harness.add_pod(harness.get("Deployment", f"helpful-{role}"), f"{role}-0", running())
    harness.add_pod(harness.get("StatefulSet", "helpful-redis"), "helpful-redis-0", running())
    return harness


def tick(
    harness: Harness, step: int, busy_per_group: float = 8.0, pods: int = 1, arrived: int = 0
) -> float | None:
    """One interval later: one step more, 32 groups more through each role."""
    harness.clock.advance(15)
    done = 32 * step
    slow = PodFigures(busy_seconds=busy_per_group * done / pods, groups=done // pods, held=1)
    quick = PodFigures(busy_seconds=0.01 * done, groups=done)
    harness.probe.figures = {f"policy-{place}": slow for place in range(pods)}
    harness.probe.figures |= {"reference-0": quick, "reward-0": quick}
    counts = RolloutStatus(admitted=done + 64, trained=done, in_flight=64)
    harness.probe.learners[""] = LearnerFigures(
        step=step,
        steps=100,
        version=f"1.{step}",
        epoch=1,
        reward=0.5,
        kl=0.1,
        step_seconds=10.0,
        rollouts=counts,
    )
    harness.probe.stages = EMPTY | {"policy": 60, "learner": arrived}
    harness.look()
    return harness.scaler.handle(Ref("TrainingRun", harness.namespace, "helpful"))


def test_a_starved_learner_gets_more_policies(training: Harness) -> None:
    """8 slot-seconds a group, 4 slots, 32 groups in 10 s: more than 6 replicas would be busy, and are ordered."""
    for step in range(1, 5):
        assert tick(training, step) == 15.0
    assert training.replicas("helpful-policy") >= 6
    training.settle()
    assert training.replicas("helpful-policy") >= 6, "the reconciler leaves the planner's number alone"
    managers = {
        entry["manager"]
        for entry in training.get("Deployment", "helpful-policy")["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert managers == {"trimtab-scaler"}
    assert any(reason == "Scaled" and "policy to" in note for reason, note in training.events())


def test_what_is_measured_stands_in_status(training: Harness) -> None:
    """Step, version, reward, backlog, and why the planner wants its number."""
    for step in range(1, 4):
        tick(training, step)
    training.settle()
    status = training.status()
    assert (status["step"], status["version"], status["reward"], status["kl"]) == (3, "1.3", 0.5, 0.1)
    assert status["rollouts"]["trained"] == 96
    policy = next(role for role in status["roles"] if role["name"] == "policy")
    assert policy["backlogGroups"] == 60
    assert policy["wanted"] >= 6
    assert training.conditions()["ScalingReady"] == ("True", "Seeing")


def test_lost_metrics_leave_everything_as_it_is(training: Harness) -> None:
    """And a condition says why."""
    training.look()
    for _ in range(3):
        training.clock.advance(15)
        training.scaler.handle(Ref("TrainingRun", training.namespace, "helpful"))
    training.settle()
    assert training.replicas("helpful-policy") == 1
    assert training.conditions()["ScalingReady"] == ("False", "StandsStill")


def test_fewer_are_drained_by_name(training: Harness) -> None:
    """A replica that holds groups is told first, and goes first once it is empty."""
    deployment = training.get("Deployment", "helpful-policy")
    for place in (1, 2):
        training.add_pod(deployment, f"policy-{place}", running())
    training.kubectl_scale("helpful-policy", 3)
    for step in range(1, 60):
        tick(training, step, busy_per_group=0.4, pods=3, arrived=60)
        if drained(training):
            break
    marked = drained(training)
    assert marked, "one of the three is told to drain"
    assert all(training.replicas("helpful-policy") == 3 for _ in marked)
    annotations = training.get("Pod", marked[0])["metadata"]["annotations"]
    assert annotations["controller.kubernetes.io/pod-deletion-cost"] == "-1000"
    # It never says that it is empty: after a while its SIGTERM does what the annotation could not.
    training.ahead = timedelta(minutes=1)
    tick(training, step + 1, busy_per_group=0.4, pods=3, arrived=60)
    assert training.replicas("helpful-policy") < 3


def drained(harness: Harness) -> list[str]:
    pods = harness.api.list("Pod", harness.namespace).items
    return [
        pod["metadata"]["name"]
        for pod in pods
        if "trimtab.dev/drain" in (pod["metadata"].get("annotations") or {})
    ]


def test_static_and_external_roles_are_measured_and_left_alone(training: Harness) -> None:
    """The scaler writes nothing of them, whatever the planner says."""
    training.change({"roles": {"policy": {"scaling": {"mode": "External", "min": None, "max": None}}}})
    training.kubectl_scale("helpful-policy", 2)
    training.settle()
    count = len(training.wrote)
    for step in range(1, 5):
        tick(training, step)
    assert training.wrote[count:] == []
    assert training.replicas("helpful-policy") == 2
