"""What was measured of a run besides what the API server says: figures for status, conditions and the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.cluster.kinds.status import CheckpointStatus, RolloutStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFigures:
    """As the learner answers GetRunStatus."""

    step: int = 0
    steps: int = 0
    epoch: int = 0
    version: str = ""
    reward: float | None = None
    kl: float | None = None
    step_seconds: float | None = None
    """Of the last step, without the time that it waited for groups."""
    idle_share: float | None = None
    rollouts: RolloutStatus | None = None
    last_checkpoint: CheckpointStatus | None = None
    paused: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleInsight:
    """One stage."""

    backlog_groups: int | None = None
    idle_share: float | None = None
    wanted: int | None = None
    reason: str = ""
    draining: int = 0
    unserved_seconds: float = 0.0
    groups_per_second: float | None = None
    """That left the stage in the last interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """Of one run. Empty where nothing was measured (yet)."""

    learner: LearnerFigures | None = None
    roles: Mapping[str, RoleInsight] = field(default_factory=dict)
    blind: str = ""
    """Why the scaler stands still; empty: it does not."""
    planned: float | None = None
    """Groups/s that the replicas are counted for."""

    def role(self, name: str) -> RoleInsight:
        """Of one stage."""
        return self.roles.get(name, RoleInsight())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInsight:
    """Of one reward model. Empty where nothing was measured (yet)."""

    backlog_rows: int | None = None
    rows_per_second: float | None = None
    """Asked for, not only answered."""
    busy_share: float | None = None
    wanted: int | None = None
    """None: the planner does not decide."""
    reason: str = ""
    draining: int = 0
    blind: str = ""
    """Why the scaler stands still; empty: it does not."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the model that each pod serves, as its metrics page says; absent: it has not said."""
    measured: bool = False
