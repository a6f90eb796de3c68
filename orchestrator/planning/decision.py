"""A decision with its arithmetic: what was counted, what bounds it, what follows. Knows no way to print it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.actions import Action
from orchestrator.planning.observed import Memory
from orchestrator.planning.sizing import Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleDecision:
    """One role: from its measured speed to the number of its replicas."""

    role: str
    mode: str
    """static, external or auto."""
    current: int
    """Replicas that serve or are coming up, and are to stay."""
    wanted: int
    """The number after all bounds and the hold."""
    reason: str
    limits: tuple[str, ...] = ()
    """Bounds that the number ran into, in words."""
    backlog_groups: int | None = None
    seconds_per_group: float | None = None
    error: float = 0.0
    """Relative standard error of `seconds_per_group`."""
    groups_per_second: float | None = None
    """Of one replica."""
    load: float | None = None
    """Replicas that would be busy all the time."""
    least: int | None = None
    """Replicas that must be there now, before bounds and hold."""
    enough: int | None = None
    """Replicas that last; between the two nothing is done."""
    hold_left_seconds: float | None = None
    """Until fewer replicas are believed; None: nothing is held."""
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, why, and what to remember. `flow` is None where no rate is known or metrics are lost."""

    actions: tuple[Action, ...]
    roles: tuple[RoleDecision, ...]
    memory: Memory
    flow: Flow | None
    step_seconds: float | None
    discarded_share: float
    verdict: str
    """One line for a person."""
