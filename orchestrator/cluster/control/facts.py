"""From Deployments, Jobs and pods to the facts that conditions are made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.cluster.conditions import RoleFacts
from orchestrator.cluster.control.insight import RoleInsight
from orchestrator.cluster.control.pods import PodView, moment

PODLESS_SECONDS = 60.0
"""After so long without a pod, somebody refuses it."""


def role_facts(
    name: str, deployment: Mapping[str, Any] | None, pods: Sequence[PodView], insight: RoleInsight
) -> RoleFacts:
    """Of a stage's Deployment. What the Deployment's controller has not looked at yet is not up to date."""
    if deployment is None:
        return RoleFacts(name=name, desired=0)
    status = deployment.get("status") or {}
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    trouble = _trouble(pods)
    return RoleFacts(
        name=name,
        desired=replicas_of(deployment),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0) if seen else 0,
        draining=sum(pod.draining is not None and not pod.ready and pod.deleting is None for pod in pods),
        unschedulable=trouble[0],
        failing=trouble[1] or _refused(status),
        unserved_seconds=insight.unserved_seconds,
    )


def learner_facts(
    replicas: int, job: Mapping[str, Any] | None, pods: Sequence[PodView], *, wanted: bool, now: datetime
) -> RoleFacts:
    """Of the learner's present attempt."""
    status = (job or {}).get("status") or {}
    ready = int(status.get("ready", 0) or 0)
    trouble = _trouble(pods)
    return RoleFacts(
        name="learner",
        desired=replicas if wanted else 0,
        least=replicas,
        ready=min(ready, replicas) if wanted else 0,
        updated=replicas if wanted and job is not None else 0,
        unschedulable=trouble[0],
        failing=trouble[1] or _podless(job, pods, now),
    )


def pod_facts(name: str, owner: Mapping[str, Any], pods: Sequence[PodView], now: datetime) -> RoleFacts:
    """Of the one pod of a Job before RL, or of the queue's server. What ended before is tried again, and no trouble."""
    live = [pod for pod in pods if not pod.ended]
    trouble = _trouble(live)
    return RoleFacts(
        name=name,
        desired=1,
        ready=int(any(pod.ready for pod in live)),
        unschedulable=trouble[0],
        failing=trouble[1] or _podless(owner, pods, now),
    )


def replicas_of(deployment: Mapping[str, Any]) -> int:
    """The Deployment's number; Kubernetes' default where none is given."""
    number = (deployment.get("spec") or {}).get("replicas")
    return 1 if number is None else int(number)


def _refused(status: Mapping[str, Any]) -> str:
    """Why a Deployment gets no pods made: a quota, Pod Security, a ServiceAccount that is not there."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition.get("status") == "True":
            told = f"{condition.get('reason', 'FailedCreate')}: {condition.get('message', '')}"
            return " ".join(told.split())[:500]
    return ""


def _podless(owner: Mapping[str, Any] | None, pods: Sequence[PodView], now: datetime) -> str:
    """That a Job or StatefulSet gets no pod made: neither says why, and neither is over."""
    metadata = (owner or {}).get("metadata") or {}
    made = moment(metadata.get("creationTimestamp"))
    over = ((owner or {}).get("status") or {}).get("conditions") or metadata.get("deletionTimestamp")
    if pods or over or made is None or (now - made).total_seconds() < PODLESS_SECONDS:
        return ""
    kind, name = (owner or {}).get("kind", "Job"), metadata.get("name", "")
    return f"{kind} {name} gets no pod: kubectl describe says why (a quota, Pod Security)"


def _trouble(pods: Sequence[PodView]) -> tuple[str, str]:
    """What keeps pods from a node, and what they end with; the first of each."""
    present = [pod for pod in pods if pod.deleting is None]
    unschedulable = next((pod.unschedulable for pod in present if pod.unschedulable), "")
    failing = next((pod.failing for pod in present if pod.failing and not pod.ready), "")
    return unschedulable, failing
