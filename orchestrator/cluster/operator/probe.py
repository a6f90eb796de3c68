"""The port to a run's own services: what the operator asks of them. Knows no way to ask; network_probe.py does.

Whatever does not answer is None or absent, never an exception: a lost scrape is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.service_meter import ServiceFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Whom we trust, and the certificate and key by which we are known; empty: nobody asks for one."""

    authority: str
    certificate: str = ""
    private_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Door:
    """Where something is asked, and how one gets in."""

    address: str = field(repr=False)
    """host:port of gRPC, or the URL of a queue server, with its password."""
    pem: Pem | None = None
    """None: plaintext, or an authority that the system knows."""
    name: str = ""
    """That its certificate must have; empty: the host of its address."""


class Probe(Protocol):
    """Asks a run's services."""

    def learner(self, door: Door) -> LearnerFigures | None:
        """Where the learner stands."""
        ...

    def checkpoint(self, door: Door, timeout_seconds: float) -> LearnerFigures | None:
        """Ask for a checkpoint at the next step boundary and wait for it; where the learner stands then.

        None: it was not written; without steps: it was, and the learner says no more.
        """
        ...

    def backlog(self, queue: Door, run_uid: str) -> Mapping[str, int] | None:
        """Groups on each stage, by service; `learner`: what has arrived."""
        ...

    def forget_keys(self, queue: Door, run_uid: str) -> str:
        """Remove all keys of a run that is over; why that could not be done, empty: it was."""
        ...

    def pods(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        """Figures of the pods that answer."""
        ...

    def services(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, ServiceFigures]:
        """Figures of the reward services that answer."""
        ...
