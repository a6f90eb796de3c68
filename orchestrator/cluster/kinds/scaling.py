"""Who decides a role's replicas, and within which bounds. Knows no planner: orchestrator/cluster/pipeline.py does."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from orchestrator.cluster.kinds.base import rules
from services.common.spec.base import Spec

MOST_REPLICAS = 10_000


class ScalingSpec(Spec):
    """Static: the operator holds `replicas`. External: kubectl, an HPA or KEDA own the number. Auto: the planner."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.min) || !has(self.max) || self.min <= self.max",
                "scaling.min must not exceed scaling.max",
            ),
            (
                "!has(self.max) || !has(self.poolLimit) || self.max <= self.poolLimit",
                "scaling.max must not exceed scaling.poolLimit, the replicas that the pool has room for",
            ),
            (
                "!has(self.min) || !has(self.poolLimit) || self.min <= self.poolLimit",
                "scaling.min must not exceed scaling.poolLimit, the replicas that the pool has room for",
            ),
            (
                "self.mode == 'Auto' || !(has(self.min) || has(self.max))",
                "scaling.min and scaling.max are for mode Auto only: Static takes replicas",
            ),
            ("self.mode != 'Auto' || has(self.max)", "scaling.mode Auto needs scaling.max"),
        )
    )

    mode: Literal["Static", "External", "Auto"] = Field("Static", description="Who decides.")
    minimum: int | None = Field(
        None, alias="min", ge=0, le=MOST_REPLICAS, description="Auto: least replicas; left out: 1."
    )
    maximum: int | None = Field(None, alias="max", ge=1, le=MOST_REPLICAS, description="Auto: most replicas.")
    pool_limit: int | None = Field(
        None, ge=0, le=MOST_REPLICAS, description="Replicas that the pool of nodes has room for."
    )

    @model_validator(mode="after")
    def _bounds(self) -> ScalingSpec:
        least, most, room = self.minimum, self.maximum, self.pool_limit
        if self.mode != "Auto" and (least is not None or most is not None):
            raise ValueError("min and max are for mode Auto only: Static takes replicas")
        if self.mode == "Auto" and most is None:
            raise ValueError("mode Auto needs max")
        if least is not None and most is not None and least > most:
            raise ValueError("min must not exceed max")
        if room is not None and max(least or 0, most or 0) > room:
            raise ValueError("min and max must not exceed poolLimit")
        return self
