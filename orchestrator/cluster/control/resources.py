"""The resources that the operator reads and writes, and where the API has them. Calls nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.cluster.kinds.base import API_VERSION
from orchestrator.cluster.names import REWARD_MODEL, RUN

Object = dict[str, Any]
"""An object as the API gives it."""


class Ref(NamedTuple):
    """Which object."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Ref:
        """Of an object or manifest."""
        metadata = item["metadata"]
        return cls(item["kind"], metadata.get("namespace", ""), metadata["name"])


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of the API. All but ResourceFlavor and WorkloadPriorityClass live in namespaces."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL's path. Without a namespace: of all namespaces."""
        prefix = "/apis/" if "/" in self.api_version else "/api/"
        inside = f"/namespaces/{namespace}" if namespace else ""
        below = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{prefix}{self.api_version}{inside}/{self.plural}{below}"


KUEUE_VERSION = "v1beta1"
"""Of Kueue's API, where an installation says nothing else."""
_ALL = (
    Resource(API_VERSION, "TrainingRun", "trainingruns"),
    Resource(API_VERSION, "RewardModel", "rewardmodels"),
    Resource("apps/v1", "Deployment", "deployments"),
    Resource("apps/v1", "StatefulSet", "statefulsets"),
    Resource("batch/v1", "Job", "jobs"),
    Resource("v1", "Pod", "pods"),
    Resource("v1", "Service", "services"),
    Resource("v1", "ConfigMap", "configmaps"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("v1", "Secret", "secrets"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("coordination.k8s.io/v1", "Lease", "leases"),
    Resource("events.k8s.io/v1", "Event", "events"),
)
_KUEUE = (
    ("Workload", "workloads"),
    ("ResourceFlavor", "resourceflavors"),
    ("WorkloadPriorityClass", "workloadpriorityclasses"),
)


def resources_with(kueue_version: str) -> Mapping[str, Resource]:
    """All of them by kind, Kueue's in the version that this installation speaks."""
    kueue = [Resource(f"kueue.x-k8s.io/{kueue_version}", kind, plural) for kind, plural in _KUEUE]
    return {resource.kind: resource for resource in (*_ALL, *kueue)}


RESOURCES = resources_with(KUEUE_VERSION)
OWNERS = ("TrainingRun", "RewardModel")
APPLIED = (
    "ServiceAccount",
    "NetworkPolicy",
    "ConfigMap",
    "Service",
    "StatefulSet",
    "Deployment",
    "PodDisruptionBudget",
    "Workload",
)
"""Kinds that are applied, and removed when the spec names them no longer. Jobs begin and end by other rules."""
PRUNED = (*APPLIED, "Job")
WATCHED = (*OWNERS, *(kind for kind in APPLIED if kind != "Workload"), "Job", "Pod")
"""Workloads are watched too, where the cluster has them. Secrets are not: operator/secrets.py says why."""


def owner_of(item: Mapping[str, Any]) -> Ref | None:
    """The run or reward model that an object belongs to, by its labels; of one of those: itself."""
    ref = Ref.of(item)
    if ref.kind in OWNERS:
        return ref
    labels = item["metadata"].get("labels") or {}
    if RUN in labels:
        return Ref("TrainingRun", ref.namespace, labels[RUN])
    if REWARD_MODEL in labels:
        return Ref("RewardModel", ref.namespace, labels[REWARD_MODEL])
    return None
