"""The port to a run's own services: what the operator asks of them. Knows no way to ask; network_probe.py does.

Whatever does not answer is None or absent, never an exception: a lost scrape is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.service_meter import ServiceFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a run can be asked."""

    run_uid: str
    queue_url: str = ""
    """Empty: nobody knows."""
    learner: str = ""
    """Address of the pod that speaks gRPC; empty: there is none."""
    pods: Mapping[str, tuple[str, int]] | None = None
    """Pod to address and metrics port."""


class Probe(Protocol):
    """Asks a run's services."""

    def learner(self, address: str) -> LearnerFigures | None:
        """Where the learner stands."""
        ...

    def checkpoint(self, address: str, timeout_seconds: float) -> LearnerFigures | None:
        """Ask for a checkpoint at the next step boundary and wait for it; where the learner stands then.

        None: it was not written; without steps: it was, and the learner says no more.
        """
        ...

    def backlog(self, queue_url: str, run_uid: str) -> Mapping[str, int] | None:
        """Groups on each stage, by service; `learner`: what has arrived."""
        ...

    def forget_keys(self, queue_url: str, run_uid: str) -> str:
        """Remove all keys of a run that is over; why that could not be done, empty: it was."""
        ...

    def pods(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        """Figures of the pods that answer."""
        ...

    def services(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, ServiceFigures]:
        """Figures of the reward services that answer."""
        ...

    def served_digest(self, address: str) -> str:
        """Digest of the reward model that a replica serves; empty: it does not answer."""
        ...
