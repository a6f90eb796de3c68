"""A circuit breaker: after failures in a row it refuses for a while, then lets one call through to find out.

    closed ──failures in a row──▶ open ──ask, after its time──▶ half_open ──success──▶ closed
                                   ▲                                 │
                                   └─────── failure, dropped ◀───────┘

Pure but for the lock: time is injected. Knows nothing of calls. Nygard 2007, "Release It!".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["closed", "open", "half_open"]
# dropped: the call ended without telling anything of the other side, its own caller's time being over.
Event = Literal["ask", "success", "failure", "dropped"]
Result = Literal["success", "failure", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """failures: in a row, that open the circuit. seconds: how long it refuses."""

    failures: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """round: rises with every change of state; a result of an earlier round says nothing of this one."""

    state: State = "closed"
    failures: int = 0
    opened_at: float = 0.0
    round: int = 0


def _same(circuit: Circuit, rules: Rules, now: float) -> Circuit:  # noqa: ARG001
    return circuit


def _sound(circuit: Circuit, rules: Rules, now: float) -> Circuit:  # noqa: ARG001
    return replace(circuit, failures=0)


def _one_more(circuit: Circuit, rules: Rules, now: float) -> Circuit:
    failures = circuit.failures + 1
    return _opened(circuit, rules, now) if failures >= rules.failures else replace(circuit, failures=failures)


def _opened(circuit: Circuit, rules: Rules, now: float) -> Circuit:  # noqa: ARG001
    return Circuit(state="open", opened_at=now, round=circuit.round + 1)


def _opened_and_due(circuit: Circuit, rules: Rules, now: float) -> Circuit:
    return Circuit(state="open", opened_at=now - rules.seconds, round=circuit.round + 1)


def _tried(circuit: Circuit, rules: Rules, now: float) -> Circuit:
    if now < circuit.opened_at + rules.seconds:
        return circuit
    return Circuit(state="half_open", round=circuit.round + 1)


def _closed(circuit: Circuit, rules: Rules, now: float) -> Circuit:  # noqa: ARG001
    return Circuit(round=circuit.round + 1)


# Everything that moves a circuit. What is not here cannot happen: results of an open circuit are of an earlier round.
TRANSITIONS: Mapping[tuple[State, Event], Callable[[Circuit, Rules, float], Circuit]] = {
    ("closed", "ask"): _same,
    ("closed", "success"): _sound,
    ("closed", "failure"): _one_more,
    ("closed", "dropped"): _same,
    ("open", "ask"): _tried,
    ("half_open", "ask"): _same,
    ("half_open", "success"): _closed,
    ("half_open", "failure"): _opened,
    ("half_open", "dropped"): _opened_and_due,
}


def step(circuit: Circuit, event: Event, rules: Rules, now: float) -> Circuit:
    """The circuit after an event. ValueError for one that cannot happen in its state."""
    move = TRANSITIONS.get((circuit.state, event))
    if move is None:
        raise ValueError(f"{event} cannot happen while the circuit is {circuit.state}")
    return move(circuit, rules, now)


class CircuitBreaker:
    """One circuit for the calls of several threads."""

    def __init__(self, rules: Rules, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._lock = threading.Lock()
        self._circuit = Circuit()

    @property
    def circuit(self) -> Circuit:
        """As it is now."""
        with self._lock:
            return self._circuit

    def ask(self) -> int | None:
        """A permit, to be given back to record() with the call's result; None where no call may be made now."""
        with self._lock:
            before = self._circuit
            self._circuit = step(before, "ask", self._rules, self._clock())
            permitted = before.state == "closed" or before.state != self._circuit.state
            return self._circuit.round if permitted else None

    def seconds_left(self) -> float:
        """Until the next call may be tried; 0 where one may, or is being tried."""
        with self._lock:
            if self._circuit.state != "open":
                return 0.0
            return max(0.0, self._circuit.opened_at + self._rules.seconds - self._clock())

    def record(self, permit: int, result: Result) -> None:
        """What became of a permitted call."""
        with self._lock:
            if permit == self._circuit.round:
                self._circuit = step(self._circuit, result, self._rules, self._clock())
