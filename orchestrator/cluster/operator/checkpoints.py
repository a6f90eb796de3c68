"""Asks learners for a checkpoint before they are taken away, in the background, each once. Knows no Job."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.operator.probe import Door, Probe


class Checkpoints:
    """Keyed by the Job that is to go. An operator that is restarted asks again, which does no harm."""

    def __init__(
        self,
        probe: Probe,
        executor: Executor,
        *,
        timeout_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._executor, self._timeout, self._clock = probe, executor, timeout_seconds, clock
        self._asked: dict[str, tuple[Future[LearnerFigures | None], float]] = {}

    def settled(self, job: str, door: Callable[[], Door]) -> bool:
        """Whether the checkpoint of this Job's learner is written, or waiting for it has no sense any more.

        door: where the learner is asked; called at the first time.
        """
        if job not in self._asked:
            future = self._executor.submit(self._probe.checkpoint, door(), self._timeout)
            self._asked[job] = (future, self._clock())
        future, since = self._asked[job]
        return future.done() or self._clock() - since > self._timeout

    def was_asked(self, job: str) -> bool:
        """Whether a checkpoint was asked for."""
        return job in self._asked

    def written(self, job: str) -> LearnerFigures | None:
        """Where the learner stood when it was written, of one that is settled; None: it was not written."""
        asked = self._asked.get(job)
        if asked is None or not asked[0].done() or asked[0].exception() is not None:
            return None
        return asked[0].result()

    def forget(self, job: str) -> None:
        """The Job is gone, or stays."""
        self._asked.pop(job, None)
