"""Workers on a queue, one step at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY

from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.controller import Controller
from services.common.errors import LostOwnership, Unavailable
from tests.fakes.clock import FakeClock

KEY = Ref("TrainingRun", "ns", "a")


def controller(handle: Callable[[Ref], float | None], clock: FakeClock) -> Controller:
    return Controller("test", handle, leads=lambda: True, clock=clock)


def test_what_is_asked_for_later_comes_later() -> None:
    """The seconds that a handler gives back."""
    clock, seen = FakeClock(), []

    def handle(key: Ref) -> float | None:
        seen.append(key)
        return 30.0

    one = controller(handle, clock)
    one.add(KEY)
    assert one.step()
    clock.advance(29)
    assert not one.step()
    clock.advance(1)
    assert one.step()
    assert seen == [KEY, KEY]


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Conflict("faster"), LostOwnership("not leading"), RuntimeError("a bug")]
)
def test_whatever_goes_wrong_is_tried_again_with_a_back_off(error: Exception) -> None:
    """No error ends a worker; the second try comes after 0.2 s, the third 0.4 s later."""
    clock, tries = FakeClock(), []

    def handle(_key: Ref) -> float | None:
        tries.append(clock())
        raise error

    one = controller(handle, clock)
    one.add(KEY)
    while len(tries) < 3:
        one.step()
        clock.advance(0.1)
    assert tries == pytest.approx([0.0, 0.2, 0.6], abs=0.11)


def test_a_success_forgets_failures() -> None:
    """The next one begins with the first back-off again."""
    clock = FakeClock()
    answers: list[Exception | None] = [Unavailable("1"), Unavailable("2"), None, Unavailable("3"), None]

    def handle(_key: Ref) -> float | None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return None

    one = controller(handle, clock)
    one.add(KEY)
    one.step()
    clock.advance(0.2)
    one.step()
    clock.advance(0.4)
    assert one.step()
    one.add(KEY)
    one.step()
    clock.advance(0.21)
    assert one.step()
    assert answers == []


def test_how_long_keys_wait_is_measured() -> None:
    """The alert for an operator that is behind has nothing else to go by."""
    clock = FakeClock()
    one = Controller("measured", lambda _key: None, leads=lambda: True, clock=clock)
    one.add(KEY)
    clock.advance(40)
    assert one.step()
    assert REGISTRY.get_sample_value("trimtab_operator_queue_seconds_sum", {"controller": "measured"}) == 40
