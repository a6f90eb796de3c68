"""Which answers of learners count: those of this very Job, asked since it is to go."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.checkpoints import Checkpoints, Leaving
from orchestrator.cluster.operator.probe import Door
from tests.fakes.clock import FakeClock
from tests.fakes.probe import FakeProbe

RUN = Ref("TrainingRun", "rlhf", "helpful")
LEARNER = Leaving(RUN, "uid-1")
DOOR = Door("10.0.0.7:50054")


class Later(Executor):
    """Takes work; the test says what it came to."""

    def __init__(self) -> None:
        self.taken: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.taken.append(Future())
        return self.taken[-1]


def asked() -> tuple[Checkpoints, Later, FakeClock]:
    later, clock = Later(), FakeClock()
    checkpoints = Checkpoints(FakeProbe(), later, clock=clock)
    checkpoints.ask(LEARNER, DOOR)
    return checkpoints, later, clock


def test_a_learner_is_asked_once_and_waited_for() -> None:
    """Until it has answered, or for ten minutes."""
    checkpoints, later, clock = asked()
    checkpoints.ask(LEARNER, DOOR)
    assert (len(later.taken), checkpoints.settled(LEARNER)) == (1, False)
    clock.advance(601)
    assert checkpoints.settled(LEARNER)
    assert checkpoints.written(LEARNER) is None
    later.taken[0].set_result(LearnerFigures(step=3))
    assert checkpoints.written(LEARNER) == LearnerFigures(step=3)


@pytest.mark.parametrize(
    "other", [Leaving(Ref("TrainingRun", "elsewhere", "helpful"), "uid-2"), Leaving(RUN, "uid-2")]
)
def test_runs_of_one_name_do_not_share_an_answer(other: Leaving) -> None:
    """Neither in two namespaces nor one made after the other was deleted."""
    checkpoints, later, _ = asked()
    later.taken[0].set_result(LearnerFigures())
    assert not checkpoints.was_asked(other)
    assert checkpoints.written(other) is None


def test_what_is_not_to_go_any_more_is_forgotten() -> None:
    """Of this run alone; asked again later, it answers anew."""
    checkpoints, later, _ = asked()
    other = Leaving(Ref("TrainingRun", "elsewhere", "helpful"), "uid-2")
    checkpoints.ask(other, DOOR)
    checkpoints.keep(RUN, [LEARNER])
    assert checkpoints.was_asked(LEARNER)
    checkpoints.keep(RUN)
    assert not checkpoints.was_asked(LEARNER)
    assert checkpoints.was_asked(other)
    later.taken[0].set_result(LearnerFigures())
    checkpoints.ask(LEARNER, DOOR)
    assert not checkpoints.settled(LEARNER)
