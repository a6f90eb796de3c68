"""Small valid objects that tests begin with."""

from __future__ import annotations

import copy
from typing import Any

from orchestrator.cluster.crds import crds
from orchestrator.cluster.kinds import RewardModel, TrainingRun, read_object

UID = "0123abcd-0000-4000-8000-000000000000"
CRDS = {crd["spec"]["names"]["kind"]: crd for crd in crds()}

RUN: dict[str, Any] = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "helpful", "namespace": "rlhf", "uid": UID, "generation": 1},
    "spec": {
        "model": {"path": "org/model"},
        "data": {"prompts": "/storage/prompts.jsonl"},
        "rewardModel": "rule:sentiment",
        "storage": {"pvc": {"claimName": "runs"}},
    },
}
MODEL: dict[str, Any] = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "RewardModel",
    "metadata": {"name": "hh", "namespace": "rlhf", "uid": UID, "generation": 1},
    "spec": {"source": {"registry": "org/hh@main"}},
}


def changed(base: dict[str, Any], **paths: Any) -> dict[str, Any]:
    """A copy with `spec` fields set: a__b=1 is spec.a.b = 1; None removes."""
    data = copy.deepcopy(base)
    for path, value in paths.items():
        *above, last = path.split("__")
        target = data["spec"]
        for part in above:
            target = target.setdefault(part, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return data


def run(**paths: Any) -> TrainingRun:
    """The run with fields set."""
    return read_object(TrainingRun, changed(RUN, **paths))


def reward_model(**paths: Any) -> RewardModel:
    """The reward model with fields set."""
    return read_object(RewardModel, changed(MODEL, **paths))


FULL_RUN = changed(
    RUN,
    rollout={"slip": ["policy", "reference", "reward/hh", "reward/rules"], "maxStaleness": 1},
    rewards=[
        {"stage": "reward/hh", "rewardModelRef": {"name": "hh", "digest": "blake3:0123456789abcdef",
                                                  "keySecret": {"name": "hh-key", "key": "key"},
                                                  "tls": {"caSecret": {"name": "ca", "key": "ca.crt"},
                                                          "clientSecret": "hh-client"}}},
        {"stage": "reward/rules", "rule": "sentiment", "role": {"replicas": 2}},
    ],
    rewardModel=None,
    stages={"sft": {"data": "/storage/sft.jsonl"}, "iterate": {"rounds": 2, "preferenceUrl": "people:50055"}},
    roles={
        "policy": {
            "scaling": {"mode": "Auto", "min": 2, "max": 8, "poolLimit": 10},
            "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}, "requests": {"cpu": "500m"}},
            "nodeSelector": {"pool": "a100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]}}},
            "runtimeClassName": "nvidia",
            "shmSize": "8Gi",
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"},
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
            "settings": {"max_rows": "128"},
            "podTemplate": {"metadata": {"annotations": {"a/b": "c"}},
                            "spec": {"hostname": "x", "containers": [{"name": "policy", "tty": True}]}},
        },
        "learner": {"replicas": 2, "nprocPerNode": 8, "resources": {"limits": {"nvidia.com/gpu": 8}}},
    },
    storage={"objectStore": {"url": "s3://bucket/runs", "credentialsSecret": "s3"}},
    modelCache={"claimName": "models"},
    queueing={"queueName": "team-a"},
    suspend=False,
    ttlAfterFinished=3600,
)  # fmt: skip
FULL_MODEL = changed(
    MODEL,
    source={"url": "gs://bucket/hh"},
    shadow={"source": {"path": "/storage/next"}},
    volume={"claimName": "models"},
    accessKeys={"secret": {"name": "keys", "key": "keys.toml"}},
    tls={"secretName": "hh-tls", "clientCa": True},
    digest="blake3:0123456789abcdef",
    scaling={"mode": "External"},
    replicas=3,
    allowedNamespaces=["team-b"],
)


def found(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one manifest of this kind and name."""
    [one] = [item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name]
    return one
