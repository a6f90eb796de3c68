"""What is seen of a run's pools, stages and learner, and what the planner remembers. Knows no plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class ReplicaState(StrEnum):
    """How far a replica is."""

    STARTING = "starting"
    """Ordered: its node, image or model is on the way."""
    READY = "ready"
    DRAINING = "draining"
    """We told it to take nothing more and to hand back; it still counts in the Deployment's number."""
    RECLAIMED = "reclaimed"
    """Its node is about to be taken away; it still counts in the Deployment's number."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod of a role, as the API server tells it (never late). Pods that terminate are left out."""

    name: str
    state: ReplicaState
    held_groups: int = 0
    """Groups that it works on."""
    pace: float = 1.0
    """Its measured speed over that of its peers: 0.5 on a slow node."""
    age_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMetrics:
    """One scrape of a role's stage and workers: counts over the interval, levels at its end."""

    busy_seconds: float
    """Slot-seconds spent on groups in the interval, over all replicas."""
    completed_groups: int
    """Groups finished in the interval."""
    backlog_groups: int
    """Stream length at the end: lag plus pending."""
    revision: str = ""
    """Digest of the model that is served; a new one makes what was learned about its speed old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleObserved:
    """A role: the Deployment's number, its pods, the last scrape (None: lost)."""

    desired: int
    replicas: tuple[Replica, ...] = ()
    metrics: RoleMetrics | None = None
    startup_seconds: float | None = None
    """Measured, of recent starts; None: none seen yet."""

    def count(self, *states: ReplicaState) -> int:
        """Replicas in one of the states."""
        return sum(replica.state in states for replica in self.replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerObserved:
    """One scrape of the learner: what finished in the interval, levels at its end."""

    step_seconds: tuple[float, ...] = ()
    """Of each step that ended in the interval, without the time it waited for groups."""
    trained_groups: int = 0
    discarded_groups: int = 0
    """Stale or failed ones in the interval: they are made, and made again."""
    ready_groups: int = 0
    """Arrived and not yet in training."""
    waited_seconds: float = 0.0
    paused: bool = False
    """It wants no group now: a checkpoint barrier, an evaluation, its own restart."""


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """What was learned of a role's speed, and since when fewer replicas would do."""

    blocks: tuple[tuple[float, int], ...] = ()
    """Closed blocks of (busy slot-seconds, completed groups), oldest first."""
    open_block: tuple[float, int] = (0.0, 0)
    revision: str = ""
    prior: float | None = None
    """Slot-seconds a group before the last forgetting: used until there is a block of the new rate."""
    surplus_since: float | None = None
    surplus_keep: int = 0
    """The largest number wanted since `surplus_since`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """All that the planner carries from one decision to the next. Small: it fits an annotation."""

    roles: dict[str, RoleMemory] = field(default_factory=dict)
    steps: tuple[float, ...] = ()
    """Seconds of the learner's last steps of its present speed, oldest first."""
    discarded: tuple[float, float] = (0.0, 0.0)
    """Fading counts of groups discarded and trained."""
    stock: float | None = None
    """Groups ready for the learner, evened out over the last scrapes."""
    seen_at: float | None = None
    """`Observed.at` of the last scrape that was learned from: none is counted twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The whole picture. `at` is when the metrics were scraped, in the clock of `now`, seconds."""

    at: float
    roles: dict[str, RoleObserved]
    learner: LearnerObserved | None = None
    """None: its metrics are lost."""
    memory: Memory = field(default_factory=Memory)


# ------------------------------------------------------------------ a service that is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetrics:
    """What all replicas of a service did in one interval, and what waits at its end."""

    seconds: float
    """Length of the interval."""
    busy_seconds: float
    """Of the models, over all replicas."""
    rows: int
    """Answered, each with a score or an error of its own."""
    refused: int = 0
    """Rows for which there was no room."""
    passes: int = 0
    """Runs of a model; 0 where there is none, as for a rule."""
    tokens: int = 0
    """In those passes."""
    waiting: int = 0
    """Rows in the queues at the end."""
    grown: int = 0
    """By so many are more waiting than at the beginning."""
    revision: str = ""
    """Digest of the model that is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMemory:
    """What was learned of a service's speed and of what is asked of it."""

    costs: tuple[tuple[int, float, float], ...] = ()
    """Per size of a pass (serving.py says how it is counted): busy seconds and tokens, fading."""
    tokens: float = 0.0
    rows: float = 0.0
    """Fading sums, for the tokens of a row. Where there are no passes a token is a row."""
    revision: str = ""
    rate: float | None = None
    """Rows/s that are asked for, evened out."""
    surplus_since: float | None = None
    surplus_keep: int = 0
    seen_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceObserved:
    """The whole picture. `at` is when the metrics were scraped, in the clock of `now`, seconds."""

    at: float
    role: RoleObserved
    """Its pods; `held_groups` are calls and rows in hand, `metrics` is left out."""
    metrics: ServiceMetrics | None = None
    """None: they are lost."""
    lost: str = "its metrics are lost"
    """Why, where they are."""
    runs_rows: float = 0.0
    """Rows/s that runs sent in the interval, of those that are known."""
    runs_will: float = 0.0
    """Rows/s that these runs send once all of their pipeline does what is planned."""
    memory: ServiceMemory = ServiceMemory()
