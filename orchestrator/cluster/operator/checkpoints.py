"""Asks learners for a checkpoint before they are taken away, in the background, each once. Knows no Job."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.probe import Door, Probe


@dataclass(frozen=True, slots=True)
class Leaving:
    """A learner that is to go: its run, and the uid of its Job. Names come again, in time and in other namespaces."""

    run: Ref
    job_uid: str


class Checkpoints:
    """Keyed by who is to go. An operator that is restarted asks again, which does no harm."""

    def __init__(
        self,
        probe: Probe,
        executor: Executor,
        *,
        timeout_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._executor, self._timeout, self._clock = probe, executor, timeout_seconds, clock
        self._asked: dict[Leaving, tuple[Future[LearnerFigures | None], float]] = {}

    def ask(self, learner: Leaving, door: Door) -> None:
        """Ask it, where it has not been asked."""
        if learner not in self._asked:
            future = self._executor.submit(self._probe.checkpoint, door, self._timeout)
            self._asked[learner] = (future, self._clock())

    def was_asked(self, learner: Leaving) -> bool:
        """Whether a checkpoint was asked for."""
        return learner in self._asked

    def settled(self, learner: Leaving) -> bool:
        """Whether the checkpoint of one that was asked is written, or waiting for it has no sense any more."""
        future, since = self._asked[learner]
        return future.done() or self._clock() - since > self._timeout

    def written(self, learner: Leaving) -> LearnerFigures | None:
        """Where the learner stood when it was written, of one that is settled; None: it was not written."""
        asked = self._asked.get(learner)
        if asked is None or not asked[0].done() or asked[0].exception() is not None:
            return None
        return asked[0].result()

    def keep(self, run: Ref, leaving: Collection[Leaving] = ()) -> None:
        """Of this run only these are to go: a checkpoint of any other says nothing about a later time."""
        # Other threads ask for other runs meanwhile.
        for one in list(self._asked):
            if one.run == run and one not in leaving:
                self._asked.pop(one, None)
