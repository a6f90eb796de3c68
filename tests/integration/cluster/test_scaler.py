"""Auto: what is measured, what is decided, what is written of it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds.status import RolloutStatus
from orchestrator.cluster.operator.probe import Door, Pem
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, api_time, running
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
    harness: Harness,
    step: int,
    busy_per_group: float = 8.0,
    pods: int = 1,
    arrived: int = 0,
    told: dict[str, PodFigures | None] | None = None,
) -> float | None:
    """One interval later: one step more, 32 groups more through each role; `told`: of pods that differ."""
    harness.clock.advance(15)
    done = 32 * step
    slow = PodFigures(busy_seconds=busy_per_group * done / pods, groups=done // pods, held=1)
    quick = PodFigures(busy_seconds=0.01 * done, groups=done)
    harness.probe.figures = {f"policy-{place}": slow for place in range(pods)}
    harness.probe.figures |= {"reference-0": quick, "reward-0": quick}
    for name, says in (told or {}).items():
        harness.probe.figures.pop(name, None)
        if says is not None:
            harness.probe.figures[name] = says
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


def test_what_changed_during_the_scrape_is_left_alone(
    training: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape takes seconds: a number that somebody wrote meanwhile is not overwritten by what was planned before."""
    scrape, numbers = training.probe.pods, itertools.cycle((2, 1))

    def scaled_meanwhile(targets: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        training.kubectl_scale("helpful-policy", next(numbers))
        training.look()
        return scrape(targets)

    monkeypatch.setattr(training.probe, "pods", scaled_meanwhile)
    for step in range(1, 7):
        tick(training, step)
    assert ("Deployment", "scale") not in training.wrote
    assert training.replicas("helpful-policy") == 1


def test_a_run_that_was_suspended_during_the_scrape_stays_at_rest(
    training: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written of it, and nothing is told of what was measured."""
    scrape = training.probe.pods

    def suspended_meanwhile(targets: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        training.change({"suspend": True})
        training.look()
        return scrape(targets)

    for step in range(1, 3):
        tick(training, step)
    monkeypatch.setattr(training.probe, "pods", suspended_meanwhile)
    count = len(training.wrote)
    tick(training, 3)
    assert training.wrote[count:] == []
    assert tick(training, 4) is None


def test_a_queue_that_does_not_answer_is_asked_by_its_present_address(training: Harness) -> None:
    """The Secret is read again: a password may have been changed."""
    tick(training, 1)
    url = base64.b64encode(b"redis://new:6379/0").decode()
    secret = Ref("Secret", training.namespace, "helpful-redis")
    training.api.merge(secret, {"data": {"operator": url}}, "test")
    training.probe.stages = None
    for _ in range(2):
        training.scaler.handle(Ref("TrainingRun", training.namespace, "helpful"))
    asked = [door.address for door in training.probe.doors if door.address.startswith("redis://")]
    assert asked[-1] == "redis://new:6379/0"
    assert "new" not in asked[-2]


def test_lost_metrics_leave_everything_as_it_is(training: Harness) -> None:
    """And a condition says why."""
    training.look()
    for _ in range(3):
        training.clock.advance(15)
        training.scaler.handle(Ref("TrainingRun", training.namespace, "helpful"))
    training.settle()
    assert training.replicas("helpful-policy") == 1
    assert training.conditions()["ScalingReady"] == ("False", "StandsStill")


def one_too_many(harness: Harness) -> tuple[str, int]:
    """Three policies where fewer do, until one is told to drain: its name, and the last step."""
    deployment = harness.get("Deployment", "helpful-policy")
    for place in (1, 2):
        harness.add_pod(deployment, f"policy-{place}", running())
    harness.kubectl_scale("helpful-policy", 3)
    for step in range(1, 60):
        tick(harness, step, busy_per_group=0.4, pods=3, arrived=60)
        if marked := drained(harness):
            return marked[0], step
    raise AssertionError("nobody is told to drain")


def look_again(harness: Harness, step: int, says: PodFigures | None, pod: str, busy: float = 0.4) -> None:
    """One interval later; `pod` says so of itself."""
    tick(harness, step, busy_per_group=busy, pods=3, arrived=60, told={pod: says})


def test_a_replica_goes_once_it_says_that_it_holds_nothing(training: Harness) -> None:
    """It is told first; what it says itself, not the time, takes it off."""
    pod, step = one_too_many(training)
    assert training.replicas("helpful-policy") == 3
    annotations = training.get("Pod", pod)["metadata"]["annotations"]
    assert annotations["controller.kubernetes.io/pod-deletion-cost"] == "-1000"
    holds = PodFigures(busy_seconds=0.4 * 32 * step / 3, groups=32 * step // 3, held=2)
    for later in (1, 2, 3):
        look_again(training, step + later, holds, pod)
    assert training.replicas("helpful-policy") == 3
    # In between two groups it holds none, and may take one at any moment.
    look_again(training, step + 4, replace(holds, held=0), pod)
    assert training.replicas("helpful-policy") == 3
    look_again(training, step + 5, replace(holds, held=0, draining=True), pod)
    assert training.replicas("helpful-policy") == 2
    assert any(note == "policy to 2: drained" for _, note in training.events())


def test_what_drains_is_asked_although_it_is_not_ready(training: Harness) -> None:
    """A marked replica is NOT_SERVING, so the kubelet makes its pod unready: it is scraped all the same."""
    pod, step = one_too_many(training)
    unready = {"status": {"conditions": [condition("Ready", "False")]}}
    training.api.merge(Ref("Pod", training.namespace, pod), unready, "kubelet", "status")
    look_again(training, step + 1, PodFigures(busy_seconds=1, groups=step, draining=True), pod)
    assert training.replicas("helpful-policy") == 2


@pytest.mark.parametrize("says", [None, PodFigures(busy_seconds=1, groups=1, held=1)])
def test_one_that_never_says_so_goes_after_two_minutes(training: Harness, says: PodFigures | None) -> None:
    """No metrics, or an image that knows no mark: SIGTERM does what the mark could not."""
    pod, step = one_too_many(training)
    training.ahead = timedelta(seconds=90)
    look_again(training, step + 1, says, pod)
    assert training.replicas("helpful-policy") == 3
    training.ahead = timedelta(seconds=121)
    look_again(training, step + 2, says, pod)
    assert training.replicas("helpful-policy") < 3


def test_load_that_returns_takes_the_mark_off(training: Harness) -> None:
    """The replica is warm: it goes on, and no other is started for it."""
    pod, step = one_too_many(training)
    for later in range(1, 12):
        look_again(training, step + later, PodFigures(busy_seconds=0, groups=0, held=1), pod, busy=12.0)
        if not drained(training):
            break
    assert drained(training) == []
    annotations = training.get("Pod", pod)["metadata"].get("annotations") or {}
    assert "controller.kubernetes.io/pod-deletion-cost" not in annotations


def test_a_role_that_is_auto_no_more_keeps_no_mark(training: Harness) -> None:
    """Nobody would ever take it off, and its replica would rest for ever."""
    pod, step = one_too_many(training)
    training.change(
        {"roles": {"policy": {"replicas": 3, "scaling": {"mode": "Static", "min": None, "max": None}}}}
    )
    training.settle()
    look_again(training, step + 1, None, pod)
    assert drained(training) == []
    assert training.replicas("helpful-policy") == 3


def condition(kind: str, status: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": api_time()}


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


@pytest.mark.usefixtures("faulty")
def test_a_run_with_tls_is_asked_by_certificates(harness: Harness) -> None:
    """The learner by the operator's own certificate and by the learner's name; the queue by its authority."""
    data = {"ca.crt": "authority", "tls.crt": "certificate", "tls.key": "key"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "helpful-tls-operator", "namespace": harness.namespace},
        "type": "kubernetes.io/tls",
        "stringData": data,
    }
    harness.api.apply(secret, "tester")
    harness.submit(changed(RUN, tls={}))
    harness.settle()
    harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-x", running("10.0.0.9"))
    harness.add_pod(harness.get("StatefulSet", "helpful-redis"), "helpful-redis-0", running())
    harness.probe.doors.clear()
    tick(harness, 1)
    pem = Pem(authority="authority", certificate="certificate", private_key="key")
    queue, learner = harness.probe.doors
    assert learner == Door("10.0.0.9:50054", pem, "helpful-tls-learner")
    assert queue.address.startswith("rediss://")
    assert queue.pem == pem
    assert "key" not in repr(learner).replace("private_key", "")
