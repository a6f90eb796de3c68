"""A run's services as the operator asks them, with answers that a test sets."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import PodFigures
from orchestrator.cluster.control.service_meter import ServiceFigures
from orchestrator.cluster.operator.probe import Door


class FakeProbe:
    """Answers at once; nothing where the test has said nothing."""

    def __init__(self) -> None:
        self.learners: dict[str, LearnerFigures] = {}
        """By address; "": of any."""
        self.stages: dict[str, int] | None = None
        self.figures: dict[str, PodFigures] = {}
        self.services_say: dict[str, ServiceFigures] = {}
        self.forgot: list[tuple[str, str]] = []
        self.forget_fails = ""
        self.checkpoints: list[str] = []
        self.writes_checkpoints = True
        self.doors: list[Door] = []
        """All that were asked at, in order."""

    def learner(self, door: Door) -> LearnerFigures | None:
        self.doors.append(door)
        return self.learners.get(door.address) or self.learners.get("")

    def checkpoint(self, door: Door, timeout_seconds: float) -> LearnerFigures | None:
        self.checkpoints.append(door.address)
        return (self.learner(door) or LearnerFigures()) if self.writes_checkpoints else None

    def backlog(self, queue: Door, run_uid: str) -> Mapping[str, int] | None:
        self.doors.append(queue)
        return self.stages

    def forget_keys(self, queue: Door, run_uid: str) -> str:
        self.forgot.append((queue.address, run_uid))
        return self.forget_fails

    def pods(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, PodFigures]:
        return {name: self.figures[name] for name in pods if name in self.figures}

    def services(self, pods: Mapping[str, tuple[str, int]]) -> Mapping[str, ServiceFigures]:
        return {name: self.services_say[name] for name in pods if name in self.services_say}
