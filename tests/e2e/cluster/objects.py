"""The objects that the test applies: values of the chart, volumes, the run. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.cluster.nodes import POOL, NodePlan

Object = dict[str, Any]
RUN = "walks"
FUNCTION = "services.common.tasks.randomwalks:score"
BATCH_GROUPS, COMPLETIONS, MAX_NEW_TOKENS = 32, 4, 9
ENDLESS = 100_000


def plans(tag: str) -> list[NodePlan]:
    """Four pools: policy has a node to spare, reward room for two. Operator and queue are on a node without taint."""
    return [
        NodePlan(name=f"{tag}-system-0", pool="system", tainted=False),
        NodePlan(name=f"{tag}-policy-0", pool="policy", gpus=1),
        NodePlan(name=f"{tag}-policy-1", pool="policy", gpus=1),
        NodePlan(name=f"{tag}-reference-0", pool="reference", gpus=1),
        NodePlan(name=f"{tag}-reward-0", pool="reward", gpus=2),
        NodePlan(name=f"{tag}-learner-0", pool="learner", gpus=1),
    ]


def chart_values(runs_namespace: str) -> Object:
    """Of the chart trimtab: two operators, pods that share this machine's addresses."""
    return {
        "operator": {
            "replicas": 2,
            "namespaces": [runs_namespace],
            "listenOnPodIp": True,
            "scalingSeconds": 5,
            "nodeSelector": {POOL: "system"},
        }
    }


def volumes(tag: str, namespace: str, folder: Path) -> list[Object]:
    """A claim with its volume for the run's files, and a volume for the claim that its queue will make."""
    files = _volume(f"{tag}-runs", tag, folder / "runs", namespace, "runs")
    queue = _volume(f"{tag}-queue", tag, folder / "queue", namespace, f"data-{RUN}-redis-0")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "runs", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": tag,
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }
    return [files, queue, claim]


def training_run(tag: str, namespace: str, *, steps: int = ENDLESS) -> Object:
    """PPO on random walks over four pools, scored by a function; somebody else scales the reward service."""
    return {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": RUN, "namespace": namespace},
        "spec": {
            "model": {"path": "/storage/model", "dtype": "float32", "device": "cpu", "threads": 1},
            "data": {"prompts": "/storage/prompts.jsonl"},
            "steps": steps,
            "sampling": {"maxNewTokens": MAX_NEW_TOKENS},
            "algorithm": {"epochs": 4, "kl": {"coefficient": 0.0}, "valueCoefficient": 1.0},
            "optimiser": {"learningRate": 3e-4},
            "rollout": {
                "batchGroups": BATCH_GROUPS,
                "completionsPerPrompt": COMPLETIONS,
                "maxStaleness": 1,
            },
            "checkpoint": {"everySteps": 5},
            "rewards": [{"stage": "reward", "function": FUNCTION}],
            "storage": {"pvc": {"claimName": "runs"}},
            "redis": {"own": {"storage": "1Gi", "storageClassName": tag, "nodeSelector": {POOL: "system"}}},
            "roles": {
                "policy": _role("policy"),
                "reference": _role("reference"),
                "reward": _role("reward") | {"scaling": {"mode": "External"}},
                "learner": _role("learner"),
            },
        },
    }


def _role(pool: str) -> Object:
    return {
        "nodeSelector": {POOL: pool},
        "tolerations": [{"key": POOL, "operator": "Equal", "value": pool, "effect": "NoSchedule"}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    }


def _volume(name: str, storage_class: str, path: Path, namespace: str, claim: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "storageClassName": storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(path)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": claim,
            },
        },
    }
