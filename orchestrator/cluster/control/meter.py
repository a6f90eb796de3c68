"""From what two scrapes of a run counted to what the planner is given. Pure: the time is handed in.

Pods count since their start, so an interval is the difference; a pod that was not there before counts from zero, and
one whose counts fell has started anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.pods import PodView
from orchestrator.planning.observed import (
    LearnerObserved,
    Memory,
    Observed,
    Replica,
    ReplicaState,
    RoleMetrics,
    RoleObserved,
)

DRAIN_PATIENCE_SECONDS = 120.0
"""A marked replica that does not say by then that it drains (it answers no scrape, its image knows no mark, the kubelet
brought it none) is taken for empty: SIGTERM makes it hand back what it still holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFigures:
    """What a worker's metrics say. Counts since it started."""

    busy_seconds: float
    """Slot-seconds."""
    groups: int
    held: int = 0
    draining: bool = False
    """It says that it is marked, holds nothing and takes nothing."""
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One look at a run. `None` or absent: not answered."""

    at: float
    pods: Mapping[str, PodFigures] = field(default_factory=dict)
    backlog: Mapping[str, int] | None = None
    """Length of each stage, by service; `learner`: what arrived there."""
    learner: LearnerFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePods:
    """A stage's Deployment and pods, from the cache."""

    desired: int
    pods: Sequence[PodView] = ()
    slots: int = 1


class Meter:
    """Of one run: what the last scrape counted, and what the planner remembers."""

    def __init__(self) -> None:
        self.memory = Memory()
        self._last: Scrape | None = None
        self._unserved_since: dict[str, float] = {}

    def observed(self, roles: Mapping[str, RolePods], scrape: Scrape, now: datetime) -> Observed:
        """What the planner sees. `now`: of the wall clock, which pods are dated with."""
        seen = {name: self._role(name, role, scrape, now) for name, role in roles.items()}
        observed = Observed(at=scrape.at, roles=seen, learner=self._learner(scrape), memory=self.memory)
        self._last = scrape
        return observed

    def unserved_seconds(self, name: str, role: RolePods, scrape: Scrape) -> float:
        """For how long groups have waited on a stage without anybody ready."""
        waits = bool((scrape.backlog or {}).get(name)) and not any(pod.ready for pod in role.pods)
        if not waits:
            self._unserved_since.pop(name, None)
            return 0.0
        return scrape.at - self._unserved_since.setdefault(name, scrape.at)

    def seconds_since_last(self, scrape: Scrape) -> float:
        """Length of the interval that this scrape ends."""
        return 0.0 if self._last is None else scrape.at - self._last.at

    def _role(self, name: str, role: RolePods, scrape: Scrape, now: datetime) -> RoleObserved:
        there = [pod for pod in role.pods if pod.deleting is None and not pod.ended]
        return RoleObserved(
            desired=role.desired,
            replicas=tuple(_replica(pod, scrape.pods.get(pod.name), now) for pod in there),
            metrics=self._metrics(name, there, scrape),
            startup_seconds=startup_seconds(there),
        )

    def _metrics(self, name: str, pods: Sequence[PodView], scrape: Scrape) -> RoleMetrics | None:
        backlog = (scrape.backlog or {}).get(name)
        answered = {pod.name: scrape.pods[pod.name] for pod in pods if pod.name in scrape.pods}
        if backlog is None or (not answered and pods):
            return None
        busy, groups = 0.0, 0
        for pod, figures in answered.items():
            before = self._last.pods.get(pod) if self._last is not None else figures
            fresh = before is None or before.groups > figures.groups
            busy += max(0.0, figures.busy_seconds - (0.0 if fresh or before is None else before.busy_seconds))
            groups += figures.groups - (0 if fresh or before is None else before.groups)
        revision = next((figures.revision for figures in answered.values() if figures.revision), "")
        return RoleMetrics(
            busy_seconds=busy, completed_groups=groups, backlog_groups=backlog, revision=revision
        )

    def _learner(self, scrape: Scrape) -> LearnerObserved | None:
        figures = scrape.learner
        if figures is None or scrape.backlog is None:
            return None
        before = self._last.learner if self._last is not None else None
        stepped = before is None or before.step != figures.step
        trained, discarded = _ended(figures), _discarded(figures)
        return LearnerObserved(
            step_seconds=(figures.step_seconds,) if stepped and figures.step_seconds else (),
            trained_groups=0 if before is None else max(0, trained - _ended(before)),
            discarded_groups=0 if before is None else max(0, discarded - _discarded(before)),
            ready_groups=scrape.backlog.get("learner", 0),
            paused=figures.paused,
        )


def idle_share(role: RolePods, metrics: RoleMetrics | None, seconds: float) -> float | None:
    """Of the replicas' time in an interval of so many seconds."""
    ready = sum(pod.ready for pod in role.pods)
    if metrics is None or seconds <= 0 or ready == 0:
        return None
    return min(1.0, max(0.0, 1 - metrics.busy_seconds / (seconds * ready * role.slots)))


def _replica(pod: PodView, figures: PodFigures | None, now: datetime) -> Replica:
    held = 0 if figures is None else figures.held
    if pod.draining is not None:
        held = _held_yet(held, figures, (now - pod.draining).total_seconds())
    age = 0.0 if pod.created is None else (now - pod.created).total_seconds()
    return Replica(pod.name, state_of(pod), held_groups=held, age_seconds=age)


def _held_yet(held: int, figures: PodFigures | None, seconds: float) -> int:
    """Of a marked replica. Until it says that it drains it may take work at any moment, so it is not empty."""
    if (figures is not None and figures.draining) or seconds >= DRAIN_PATIENCE_SECONDS:
        return 0
    return max(1, held)


def state_of(pod: PodView) -> ReplicaState:
    """How far a pod is."""
    if pod.reclaimed:
        return ReplicaState.RECLAIMED
    if pod.draining is not None:
        return ReplicaState.DRAINING
    return ReplicaState.READY if pod.ready else ReplicaState.STARTING


def startup_seconds(pods: Sequence[PodView]) -> float | None:
    """Seconds from a pod's creation to its first readiness, the median of those that are there."""
    seconds = [
        (pod.ready_since - pod.created).total_seconds()
        for pod in pods
        if pod.ready_since is not None and pod.created is not None
    ]
    return statistics.median(seconds) if seconds else None


def _ended(figures: LearnerFigures) -> int:
    return 0 if figures.rollouts is None else figures.rollouts.trained


def _discarded(figures: LearnerFigures) -> int:
    return 0 if figures.rollouts is None else figures.rollouts.stale + figures.rollouts.failed
