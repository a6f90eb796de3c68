"""From what two scrapes of a reward model's replicas counted to what the planner is given. Pure: time is handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.cluster.control.meter import DRAIN_PATIENCE_SECONDS, startup_seconds, state_of
from orchestrator.cluster.control.pods import PodView
from orchestrator.planning.observed import (
    Replica,
    RoleObserved,
    ServiceMemory,
    ServiceMetrics,
    ServiceObserved,
)

LEAST_ANSWERS = 0.5
"""Share of the ready replicas that must answer; the others are taken to do what these do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFigures:
    """What a replica's metrics say. Counts since it started, but for waiting and calls."""

    busy_seconds: float
    rows: int
    """Answered."""
    refused: int = 0
    passes: int = 0
    tokens: int = 0
    waiting: int = 0
    """Rows in its queues."""
    calls: int = 0
    """In flight."""
    draining: bool = False
    """It says that it is marked, so it is not ready."""
    revision: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By the name of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceScrape:
    """One look. Pods that are absent did not answer."""

    at: float
    pods: Mapping[str, ServiceFigures] = field(default_factory=dict)
    runs_rows: float = 0.0
    """Rows/s that runs sent, and will send (see ServiceObserved)."""
    runs_will: float = 0.0


class ServiceMeter:
    """Of one reward model: what the last scrape counted, and what the planner remembers."""

    def __init__(self) -> None:
        self.memory = ServiceMemory()
        self._last: ServiceScrape | None = None

    def observed(
        self, desired: int, pods: Sequence[PodView], scrape: ServiceScrape, now: datetime
    ) -> ServiceObserved:
        """What the planner sees. `now`: of the wall clock, which pods are dated with."""
        there = [pod for pod in pods if pod.deleting is None and not pod.ended]
        ready = [pod for pod in there if pod.ready]
        answered = [pod.name for pod in ready if pod.name in scrape.pods]
        lost = ""
        if len(answered) < LEAST_ANSWERS * len(ready):
            lost = f"{len(ready) - len(answered)} of {len(ready)} replicas do not answer"
        role = RoleObserved(
            desired=desired,
            replicas=tuple(_replica(pod, scrape.pods.get(pod.name), now) for pod in there),
            startup_seconds=startup_seconds(there),
        )
        share = len(ready) / len(answered) if answered else 1.0
        metrics = None if lost else self._metrics(scrape, share)
        self._last = scrape
        return ServiceObserved(
            at=scrape.at,
            role=role,
            metrics=metrics,
            lost=lost,
            runs_rows=scrape.runs_rows,
            runs_will=scrape.runs_will,
            memory=self.memory,
        )

    def _metrics(self, scrape: ServiceScrape, share: float) -> ServiceMetrics:
        """Sums of the differences. Of `share` replicas for each that answered."""
        before = {} if self._last is None else self._last.pods
        seconds = 0.0 if self._last is None else scrape.at - self._last.at
        parts = [
            _since(figures, before.get(name) if self._last is not None else figures)
            for name, figures in scrape.pods.items()
        ]
        waiting = round(share * sum(figures.waiting for figures in scrape.pods.values()))
        waited = sum(figures.waiting for figures in before.values())
        return ServiceMetrics(
            seconds=seconds,
            busy_seconds=share * sum(part.busy_seconds for part in parts),
            rows=round(share * sum(part.rows for part in parts)),
            refused=round(share * sum(part.refused for part in parts)),
            passes=round(share * sum(part.passes for part in parts)),
            tokens=round(share * sum(part.tokens for part in parts)),
            waiting=waiting,
            grown=waiting - waited if seconds else 0,
            revision=next((one.revision for one in scrape.pods.values() if one.revision), ""),
        )


def busy_share(observed: ServiceObserved) -> float | None:
    """Of the ready replicas' time in the last interval."""
    ready = sum(replica.state.value == "ready" for replica in observed.role.replicas)
    metrics = observed.metrics
    if metrics is None or metrics.seconds <= 0 or ready == 0:
        return None
    return min(1.0, metrics.busy_seconds / (metrics.seconds * ready))


def _since(figures: ServiceFigures, before: ServiceFigures | None) -> ServiceFigures:
    """The difference; of a replica that is new or began anew, all of it."""
    if before is None or before.rows > figures.rows or before.passes > figures.passes:
        return figures
    return ServiceFigures(
        busy_seconds=max(0.0, figures.busy_seconds - before.busy_seconds),
        rows=figures.rows - before.rows,
        refused=max(0, figures.refused - before.refused),
        passes=figures.passes - before.passes,
        tokens=max(0, figures.tokens - before.tokens),
    )


def _replica(pod: PodView, figures: ServiceFigures | None, now: datetime) -> Replica:
    held = 0 if figures is None else figures.calls + figures.waiting
    if pod.draining is not None:
        told = (now - pod.draining).total_seconds() >= DRAIN_PATIENCE_SECONDS
        unheard = figures is None or not figures.draining
        # Callers that hold an old connection may go on for minutes: SIGTERM ends what is left in good order.
        held = 0 if told else max(1, held) if unheard else held
    age = 0.0 if pod.created is None else (now - pod.created).total_seconds()
    return Replica(pod.name, state_of(pod), held_groups=held, age_seconds=age)
