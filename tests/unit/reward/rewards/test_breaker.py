"""The circuit breaker's table, walked with a clock of its own, and the breaker's permits."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from services.reward.rewards.breaker import (
    TRANSITIONS,
    Circuit,
    CircuitBreaker,
    Event,
    Rules,
    State,
    step,
)
from tests.fakes.clock import FakeClock

RULES = Rules(failures=3, seconds=10.0)
CLOSED = Circuit(failures=1, round=4)
OPEN = Circuit(state="open", opened_at=100.0, round=4)
HALF = Circuit(state="half_open", round=4)


@pytest.mark.parametrize(
    ("before", "event", "now", "after"),
    [
        (CLOSED, "ask", 100.0, CLOSED),
        (CLOSED, "success", 100.0, Circuit(failures=0, round=4)),
        (CLOSED, "failure", 100.0, Circuit(failures=2, round=4)),
        (Circuit(failures=2, round=4), "failure", 100.0, Circuit(state="open", opened_at=100.0, round=5)),
        (CLOSED, "dropped", 100.0, CLOSED),
        (OPEN, "ask", 109.9, OPEN),
        (OPEN, "ask", 110.0, Circuit(state="half_open", round=5)),
        (HALF, "ask", 500.0, HALF),
        (HALF, "success", 110.0, Circuit(round=5)),
        (HALF, "failure", 111.0, Circuit(state="open", opened_at=111.0, round=5)),
        (HALF, "dropped", 111.0, Circuit(state="open", opened_at=101.0, round=5)),
    ],
)
def test_every_move(before: Circuit, event: Event, now: float, after: Circuit) -> None:
    """Each event leads from each state to the one that the table says."""
    assert step(before, event, RULES, now) == after


def test_what_is_not_in_the_table_cannot_happen() -> None:
    """The table has nine moves; the three results of an open circuit are illegal."""
    states, events = get_args(State), get_args(Event)
    illegal = set(product(states, events)) - set(TRANSITIONS)
    assert illegal == {("open", "success"), ("open", "failure"), ("open", "dropped")}
    for state, event in illegal:
        with pytest.raises(ValueError, match="cannot happen while the circuit is open"):
            step(Circuit(state=state), event, RULES, 0.0)


def failed(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        permit = breaker.ask()
        assert permit is not None
        breaker.record(permit, "failure")


def test_it_refuses_for_its_time_and_then_lets_one_through() -> None:
    """Three failures in a row open it for ten seconds; then a single call decides."""
    clock = FakeClock()
    breaker = CircuitBreaker(RULES, clock)
    failed(breaker, 3)
    assert breaker.ask() is None
    assert breaker.seconds_left() == 10.0
    clock.advance(10.0)
    assert breaker.seconds_left() == 0.0
    probe = breaker.ask()
    assert probe is not None
    assert breaker.ask() is None
    breaker.record(probe, "success")
    assert breaker.circuit.state == "closed"
    failed(breaker, 2)
    assert breaker.ask() is not None


def test_a_success_between_failures_keeps_it_closed() -> None:
    """Only failures in a row count."""
    breaker = CircuitBreaker(RULES, FakeClock())
    for _ in range(5):
        failed(breaker, 2)
        permit = breaker.ask()
        assert permit is not None
        breaker.record(permit, "success")
    assert breaker.circuit.state == "closed"


def test_results_of_an_earlier_round_say_nothing() -> None:
    """A call that began before the circuit opened neither closes nor reopens it when it ends late."""
    clock = FakeClock()
    breaker = CircuitBreaker(RULES, clock)
    late = [breaker.ask() for _ in range(2)]
    failed(breaker, 3)
    assert late[0] is not None
    breaker.record(late[0], "success")
    assert breaker.ask() is None
    clock.advance(10.0)
    probe = breaker.ask()
    assert late[1] is not None
    breaker.record(late[1], "failure")
    assert breaker.circuit.state == "half_open"
    assert probe is not None
    breaker.record(probe, "failure")
    assert breaker.seconds_left() == 10.0


def test_a_dropped_probe_lets_the_next_one_try() -> None:
    """A probe whose own caller was in a hurry proves nothing: the next call is the probe."""
    clock = FakeClock()
    breaker = CircuitBreaker(RULES, clock)
    failed(breaker, 3)
    clock.advance(10.0)
    probe = breaker.ask()
    assert probe is not None
    breaker.record(probe, "dropped")
    assert breaker.ask() is not None
