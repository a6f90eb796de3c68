"""What an installation fixes for all runs: images, the operator's place, who scrapes. Knows no run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RELEASE = "0.1.0"
IMAGES: Mapping[str, str] = {
    **{role: f"trimtab-{role}:{RELEASE}" for role in ("policy", "reference", "reward", "learner")},
    "redis": "valkey/valkey:9.0",
    "transfer": "rclone/rclone:1.71",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of a service: gRPC, health 100 above it, metrics 200; HTTP where it has any."""

    grpc: int
    http: int | None = None

    @property
    def health(self) -> int:
        """Plaintext gRPC health."""
        return self.grpc + 100

    @property
    def metrics(self) -> int:
        """Prometheus."""
        return self.grpc + 200


PORTS: Mapping[str, Ports] = {
    "policy": Ports(grpc=50051),
    "reference": Ports(grpc=50052),
    "reward": Ports(grpc=50053, http=8053),
    "learner": Ports(grpc=50054),
}
REDIS_PORT = 6379
RENDEZVOUS_PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """Of one installation of the operator."""

    images: Mapping[str, str] = field(default_factory=lambda: dict(IMAGES))
    """Per role, where a run names none; `transfer` is rclone's."""
    operator_namespace: str = "trimtab-system"
    operator_labels: Mapping[str, str] = field(
        default_factory=lambda: {"app.kubernetes.io/name": "trimtab-operator"}
    )
    monitoring_namespace: str | None = "monitoring"
    """Whose pods may scrape; None: nobody from outside."""
    listen_on_pod_ip: bool = False
    """Listen on the pod's address alone: for nodes whose pods share an address space. Ends port-forward."""
    user: int = 10001
    """The images' user and group, never root."""
    kueue_version: str = "v1beta1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is there already. The renderer asks no cluster, so it is told."""

    existing: frozenset[str] = frozenset()
    """Deployments that are there: what is applied to them never names `replicas`."""
    attempt: int | None = None
    """The learner's, from 1; None: no learner now (suspended, a job goes first, finished)."""
    epoch: int = 0
    """That this attempt begins at least; a label, for people."""
    admitted: bool = True
    """By Kueue, where the run is queued."""
    queued: bool = True
    """Whether a run with `queueing` has its Workload: none where it is suspended or finished and its pods are gone."""
    node_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per service: the nodes that Kueue assigned."""
    stage: str = "rl"
    """sft, rewardModel or rl: the job of this stage is rendered."""

    def creates(self, deployment: str) -> bool:
        """Whether this Deployment is to be made."""
        return deployment not in self.existing
