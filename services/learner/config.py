"""The learner service's configuration: what all services have, the run, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from services.common.access.safety import is_loopback
from services.common.spec.base import Spec
from services.common.spec.run import RunSpec
from services.common.spec.service import FABRIC_AND_TLS, ServiceSpec


class HandoverSpec(Spec):
    """[weights]: how they reach policies on this machine; others fetch them by gRPC."""

    folder: str = Field(
        "",
        description="Published tensors are files here that policies map, best in memory (/dev/shm); "
        "empty: all fetch them.",
    )
    fabric: str = Field(
        "", max_length=63, description="Name of what policies that say the same share with this: see theirs."
    )


class LearnerConfig(ServiceSpec):
    """[server] [queue] [log] [run] [weights] and the run's folder."""

    run: RunSpec
    out: Path = Field(description="The run's folder: checkpoints/, metrics.jsonl, model/.")
    deltas: bool = Field(
        True, description="Publish what changed beside whole tensors; not worth its time on one machine."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="On this machine, one GPU each; more than 1: they are started by torchrun and share one model.",
    )
    weights: HandoverSpec = HandoverSpec()
    linger_seconds: float = Field(
        2.0, ge=0, description="How long the finished learner still answers, so that status can be read."
    )
    cut_off_status: Literal[0, 143] = Field(
        0,
        description="Exit status where SIGTERM comes before the run's end; 143 for those who take 0 for that end.",
    )
    watch_seconds: float = Field(5.0, gt=0, description="How often waiting work is compared with the ledger.")

    @model_validator(mode="after")
    def _several(self) -> LearnerConfig:
        if self.processes > 1 and (problem := self.run.alone_because):
            raise ValueError(f"processes = {self.processes}: {problem}")
        parts = {self.part_port(place) for place in range(1, self.processes)} - {0}
        for name in ("health_port", "metrics_port"):
            if (port := getattr(self.server, name)) in parts:
                raise ValueError(f"server.{name}: at {port} another process serves its part of the weights")
        return self

    def part_port(self, place: int) -> int:
        """Where a process serves its part of the weights, by its place on its machine; 0: at any port that is free.

        Beside the first one's, which a firewall can be told; not on loopback, where a run's ports are drawn.
        """
        fixed = self.server.port and not is_loopback(self.server.host)
        return self.server.port + place if fixed else 0

    @model_validator(mode="after")
    def _fabric(self) -> LearnerConfig:
        if self.weights.fabric and self.tls is not None:
            raise ValueError(FABRIC_AND_TLS)
        return self
