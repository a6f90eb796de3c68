"""What is wanted of a run's pools: roles, their bounds and prices, the learner. Knows nothing of what is seen."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.errors import InvalidInput

PIPELINE = ("policy", "reference", "reward")
"""The order in which a rollout group passes the roles; a run may have more stages (`reward/rules`)."""


@dataclass(frozen=True, slots=True)
class Static:
    """The scaler holds this number of replicas."""

    replicas: int


@dataclass(frozen=True, slots=True)
class External:
    """The scaler is off: kubectl, an HPA or KEDA own the number."""


@dataclass(frozen=True, slots=True)
class Auto:
    """The planner finds the number, from `minimum` to `maximum`."""

    minimum: int = 1
    maximum: int = 100


Scaling = Static | External | Auto


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """One role with its own pool of nodes."""

    name: str
    scaling: Scaling = field(default_factory=Auto)
    price: float = 1.0
    """Of one replica for an hour, in any unit that all roles share (GPU-hours weighted by their price)."""
    slots: int = 1
    """Groups that one replica works on at the same time."""
    pool: str = ""
    """Name of the pool of nodes; empty: one of its own."""
    startup_seconds: float = 240.0
    """From a new replica to its first group: node, image, model. Used until it has been measured."""
    seconds_per_group: float | None = None
    """Slot-seconds that a group takes, for the time before any was measured; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """A run as the scaler sees it. Raises InvalidInput for bounds that cannot hold."""

    roles: tuple[RoleSpec, ...]
    batch_groups: int
    max_staleness: int = 0
    learner_price: float = 1.0
    """Of the learner for an hour: what it costs, beside the replicas, when the learner waits."""
    step_seconds: float | None = None
    """Of one training step without waiting, for the time before any was measured."""
    pools: dict[str, int] = field(default_factory=dict)
    """Replicas that a pool of nodes has room for; a pool that is absent here has no limit."""
    suspended: bool = False
    stale_seconds: float = 120.0
    """Metrics older than this are lost metrics: everything stands still."""

    def __post_init__(self) -> None:
        wrong = {}
        if self.batch_groups < 1:
            wrong["batchGroups"] = "at least 1"
        if self.max_staleness < 0:
            wrong["maxStaleness"] = "at least 0"
        for role in self.roles:
            wrong |= _violations(role)
        if len({role.name for role in self.roles}) < len(self.roles):
            wrong["roles"] = "names that differ"
        if wrong:
            told = ", ".join(f"{path}: {expected}" for path, expected in wrong.items())
            raise InvalidInput(f"the run's scaling cannot hold: {told}", wrong)

    @property
    def window_groups(self) -> int:
        """Groups that admission allows in flight, the batch in training among them."""
        return (self.max_staleness + 1) * self.batch_groups


def _violations(role: RoleSpec) -> dict[str, str]:
    wrong = {}
    path = f"roles.{role.name}"
    if isinstance(role.scaling, Auto) and not 0 <= role.scaling.minimum <= role.scaling.maximum:
        wrong[f"{path}.scaling"] = "0 <= min <= max"
    if isinstance(role.scaling, Static) and role.scaling.replicas < 0:
        wrong[f"{path}.scaling.replicas"] = "at least 0"
    if role.slots < 1:
        wrong[f"{path}.slots"] = "at least 1"
    if role.price < 0 or role.startup_seconds < 0:
        wrong[f"{path}"] = "price and startupSeconds of at least 0"
    if role.seconds_per_group is not None and role.seconds_per_group <= 0:
        wrong[f"{path}.secondsPerGroup"] = "above 0"
    return wrong
