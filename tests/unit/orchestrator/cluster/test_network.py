"""NetworkPolicies: exactly the picture, by their meaning and not by their form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import render_reward_model, render_run
from tests.unit.orchestrator.cluster.objects import FULL_RUN, changed, reward_model, run
from tests.unit.orchestrator.cluster.reach import Address, Pod, may_reach

NAMES = RunNames("helpful", "rlhf")
PODS = {
    "policy": Pod("rlhf", NAMES.labels("policy")),
    "reference": Pod("rlhf", NAMES.labels("reference")),
    "reward-hh": Pod("rlhf", NAMES.labels("reward-hh", "reward")),
    "reward-rules": Pod("rlhf", NAMES.labels("reward-rules", "reward")),
    "learner": Pod("rlhf", NAMES.labels("learner")),
    "redis": Pod("rlhf", NAMES.labels("redis")),
    "hh": Pod("rlhf", {"trimtab.dev/reward-model": "hh"}),
    "stranger": Pod("rlhf", {"app": "x"}),
    "far stranger": Pod("other", {"app": "x"}),
    "operator": Pod("trimtab-system", {"app.kubernetes.io/name": "trimtab-operator"}),
    "prometheus": Pod("monitoring", {"app": "prometheus"}),
}
PARTS = range(50054, 50062)
"""Of a learner's pod: eight processes, each with its part of the weights."""
PORTS = (
    6379,
    29500,
    50055,
    50061,
    50062,
    *(base + more for base in range(50051, 50055) for more in (0, 100, 200)),
)
OURS = ("policy", "reference", "reward-hh", "reward-rules", "learner")


def policies(spec: TrainingRun) -> list[dict[str, Any]]:
    shared = render_reward_model(reward_model())
    return [m for m in [*render_run(spec), *shared] if m["kind"] == "NetworkPolicy"]


def picture() -> set[tuple[str, str, int]]:
    """Who reaches whom inside a run, and at which port: all of it."""
    allowed = {(pod, "redis", 6379) for pod in OURS}
    allowed |= {("policy", "policy", 50051), ("reward-hh", "hh", 50053)}
    allowed |= {("policy", "learner", port) for port in PORTS if port in PARTS}
    allowed |= {("learner", "learner", port) for port in PORTS}
    allowed |= {("operator", pod, port) for pod in (*OURS, "redis", "hh") for port in PORTS}
    metrics = {
        "policy": 50251,
        "reference": 50252,
        "reward-hh": 50253,
        "reward-rules": 50253,
        "learner": 50254,
        "hh": 50253,
    }
    allowed |= {("prometheus", pod, port) for pod, port in metrics.items()}
    # A reward model is there to be called by the pods of its namespace; those of a run reach it by the bridge alone.
    allowed |= {("stranger", "hh", 50053)}
    return allowed


MINIO = {"url": "s3://b/r", "endpoint": "http://minio:9000"}
VLLM = {"kind": "vllm", "url": "http://vllm:8000", "weightsFolder": "/weights"}


def test_exactly_the_picture() -> None:
    """Of all pairs of pods and all ports, those of the picture are open and no others."""
    spec = read_object(TrainingRun, changed(FULL_RUN, storage={"pvc": {"claimName": "runs"}}))
    rules, theirs = policies(spec), ("stranger", "far stranger", "operator", "prometheus")
    found = {
        (source, target, port)
        for source, target in itertools.product(PODS, PODS)
        if target not in theirs or source not in theirs
        for port in PORTS
        if may_reach(rules, PODS[source], PODS[target], port)
    }
    assert found == picture()


def test_a_fabric_opens_all_ports_between_learner_and_policies_and_no_others() -> None:
    """What goes past gRPC chooses its ports itself."""
    storage = {"pvc": {"claimName": "runs"}}
    spec = read_object(TrainingRun, changed(FULL_RUN, storage=storage, network={"fabric": True}))
    rules = policies(spec)
    found = {
        (source, target, port)
        for source, target in itertools.product(OURS, OURS)
        for port in PORTS
        if may_reach(rules, PODS[source], PODS[target], port)
    }
    pairs = {("policy", "policy"), ("policy", "learner"), ("learner", "policy")}
    over_fabric = {(*pair, port) for pair in pairs for port in PORTS}
    assert found == {one for one in picture() if one[0] in OURS and one[1] in OURS} | over_fabric


@pytest.mark.parametrize(
    ("fields", "pod", "ip", "port", "open_"),
    [
        ({}, "policy", "140.82.112.3", 443, True),
        ({}, "policy", "140.82.112.3", 80, False),
        ({}, "policy", "10.1.2.3", 443, False),
        ({}, "policy", "169.254.169.254", 80, False),
        ({"model__path": "/storage/m"}, "policy", "140.82.112.3", 443, False),
        ({"network": {"internet": False}}, "policy", "140.82.112.3", 443, False),
        ({}, "reward", "140.82.112.3", 443, False),
        ({"storage": {"objectStore": {"url": "s3://b/r"}}}, "learner", "140.82.112.3", 443, True),
        ({"storage": {"objectStore": {"url": "s3://b/r"}}}, "learner", "169.254.169.254", 80, True),
        (
            {"storage": {"objectStore": {"url": "s3://b/r", "credentialsSecret": "s"}}},
            "learner", "169.254.169.254", 80, False,
        ),
        ({"storage": {"objectStore": MINIO}}, "learner", "10.3.3.3", 9000, True),
        ({"storage": {"objectStore": MINIO}}, "learner", "10.3.3.3", 9001, False),
        ({"model__path": "/storage/m", "stages__sft": {"data": "/storage/d"}}, "job", "140.82.112.3", 443, False),
        (
            {"model__path": "/storage/m", "stages__sft": {"data": "/storage/d", "model": "org/m"}},
            "job", "140.82.112.3", 443, True,
        ),
        (
            {"model__path": "/storage/m", "stages__rewardModel": {"data": "/storage/d", "model": "org/m"}},
            "job", "140.82.112.3", 443, True,
        ),
        ({"network": {"egressCidrs": ["10.9.0.0/16"]}}, "reference", "10.9.1.1", 8080, True),
        ({"redis": {"url": "redis://queue.shared:6380/0"}}, "reference", "10.3.3.3", 6380, True),
        ({"redis": {"url": "redis://queue.shared:6380/0"}}, "reference", "10.3.3.3", 6379, False),
        ({"engine": VLLM}, "policy", "10.3.3.3", 8000, True),
        ({"engine": VLLM}, "reference", "10.3.3.3", 8000, False),
        ({"engine": VLLM}, "policy", "10.3.3.3", 8001, False),
        ({"engine": {**VLLM, "url": "https://vllm"}}, "policy", "10.3.3.3", 443, True),
    ],
)  # fmt: skip
def test_the_world_outside(fields: dict[str, Any], pod: str, ip: str, port: int, open_: bool) -> None:
    """Only what a run needs of the outside is open: a hub or store by 443, never a neighbour's address."""
    source = Pod("rlhf", NAMES.labels(pod))
    assert may_reach(policies(run(**fields)), source, Address(ip), port) is open_


URL = {"url": "gs://b/hh"}


@pytest.mark.parametrize(
    ("fields", "ip", "port", "open_"),
    [
        ({"source": URL}, "140.82.112.3", 443, True),
        ({"source": URL}, "169.254.169.254", 80, True),
        ({"source": URL, "credentialsSecret": "s"}, "169.254.169.254", 80, False),
        ({}, "169.254.169.254", 80, False),
        ({"source": {"rule": "sentiment"}, "shadow": {"source": URL}}, "169.254.169.254", 80, True),
        ({"source": URL}, "10.3.3.3", 9000, False),
        ({"source": {"url": "s3://b/hh"}, "endpoint": "http://minio:9000"}, "10.3.3.3", 9000, True),
        ({"source": {"url": "s3://b/hh"}, "endpoint": "https://minio"}, "10.3.3.3", 443, True),
        ({"source": {"registry": "org/hh"}, "endpoint": "http://minio:9000"}, "10.3.3.3", 9000, False),
        ({"egressCidrs": ["10.9.0.0/16"]}, "10.9.1.1", 8080, True),
        ({"egressCidrs": ["10.9.0.0/16"]}, "10.8.1.1", 8080, False),
    ],
)  # fmt: skip
def test_the_world_outside_of_a_reward_model(fields: dict[str, Any], ip: str, port: int, open_: bool) -> None:
    """Where its model is fetched from, with the identity that it takes, and what the user names."""
    rules = [m for m in render_reward_model(reward_model(**fields)) if m["kind"] == "NetworkPolicy"]
    assert may_reach(rules, PODS["hh"], Address(ip), port) is open_


def test_every_pod_may_ask_for_names() -> None:
    """DNS is open over UDP for each pod of the run."""
    [common] = [p for p in policies(run()) if p["metadata"]["name"] == "helpful-common"]
    assert {"port": 53, "protocol": "UDP"} in common["spec"]["egress"][0]["ports"]
    assert common["spec"]["podSelector"]["matchLabels"] == {"trimtab.dev/run": "helpful"}


def test_policies_can_be_left_out() -> None:
    """A cluster with policies of its own gets none of ours."""
    assert not [m for m in render_run(run(network={"policies": False})) if m["kind"] == "NetworkPolicy"]
