"""What `trimtab operator` is told: [server] [lease] [render] …, TOML. Knows no cluster."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from orchestrator.cluster.control.election import Timing
from orchestrator.cluster.control.resources import KUEUE_VERSION
from orchestrator.cluster.render import RenderOptions
from orchestrator.cluster.render.options import IMAGES
from services.common.spec.base import Spec
from services.common.spec.service import LogSpec

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class LeaseSpec(Spec):
    """Leader election. A replica that cannot renew stops writing `renew_seconds` after its last renewal."""

    enabled: bool = Field(True, description="False: this is the only one, for development.")
    name: str = "trimtab-operator"
    namespace: str = Field("", description="Empty: POD_NAMESPACE, else trimtab-system.")
    lease_seconds: float = Field(15.0, ge=2, le=300)
    renew_seconds: float = Field(10.0, ge=1, le=290)
    retry_seconds: float = Field(2.0, gt=0, le=60)

    @model_validator(mode="after")
    def _ordered(self) -> LeaseSpec:
        if not self.retry_seconds < self.renew_seconds < self.lease_seconds:
            raise ValueError("expected retry_seconds < renew_seconds < lease_seconds")
        return self

    def timing(self) -> Timing:
        """As the election takes it."""
        return Timing(
            lease_seconds=self.lease_seconds,
            renew_seconds=self.renew_seconds,
            retry_seconds=self.retry_seconds,
        )


class RenderSpec(Spec):
    """What is the same for all runs of this installation."""

    images: dict[str, str] = Field(default_factory=dict, description="Per role, over the release's.")
    operator_namespace: str = Field("", description="Empty: the lease's.")
    operator_labels: dict[str, str] = Field(
        default_factory=lambda: {"app.kubernetes.io/name": "trimtab-operator"},
        description="Of the operator's pods, for the NetworkPolicies.",
    )
    monitoring_namespace: str = Field("monitoring", description="Whose pods may scrape; empty: nobody.")
    listen_on_pod_ip: bool = Field(False, description="For nodes whose pods share an address space.")
    user: int = Field(10001, ge=1)
    kueue_version: str = Field(KUEUE_VERSION, description="Of Kueue's API: what it is read and written by.")

    def options(self, namespace: str) -> RenderOptions:
        """As the renderer takes it."""
        return RenderOptions(
            images={**IMAGES, **self.images},
            operator_namespace=self.operator_namespace or namespace,
            operator_labels=self.operator_labels,
            monitoring_namespace=self.monitoring_namespace or None,
            listen_on_pod_ip=self.listen_on_pod_ip,
            user=self.user,
            kueue_version=self.kueue_version,
        )


_PROCESS = secrets.token_hex(4)
"""Not its id: in a container that is always 1, so on the host's network two replicas would lead under one name."""


class OperatorConfig(Spec):
    """The operator's configuration."""

    identity: str = Field(
        "", max_length=128, description="Empty: the host's name, and what no other process has."
    )
    namespaces: tuple[Namespace, ...] = Field((), description="To look after; empty: all.")
    lease: LeaseSpec = LeaseSpec()
    render: RenderSpec = RenderSpec()
    log: LogSpec = LogSpec()
    host: str = Field("0.0.0.0", description="Of metrics and health.")  # noqa: S104 kubelet and Prometheus ask
    metrics_port: Port = Field(50256, description="Prometheus; 0: any free one.")
    health_port: Port = Field(50156, description="/healthz, /readyz; 0: any free one.")
    workers: int = Field(4, ge=1, le=64, description="Reconciles at the same time, of each controller.")
    resync_seconds: float = Field(600.0, ge=5, description="Everything is looked at anew so often.")
    scaling_seconds: float = Field(15.0, ge=1, le=600, description="Between two looks at a run's services.")
    status_seconds: float = Field(10.0, ge=0, description="Between two writes of a status for figures alone.")
    checkpoint_seconds: float = Field(
        600.0, ge=1, description="To wait at suspend for the end of a step and its checkpoint."
    )
    requests_seconds: float = Field(
        5.0, gt=0, le=10, description="For the end of what is under way at SIGTERM."
    )

    def who(self) -> str:
        """This replica's name in the lease."""
        return self.identity or f"{socket.gethostname()}-{_PROCESS}"

    def home(self) -> str:
        """The operator's namespace."""
        return self.lease.namespace or os.environ.get("POD_NAMESPACE", "trimtab-system")
