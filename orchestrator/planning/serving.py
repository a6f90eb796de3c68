"""Decides the replica count of a service that is asked: no learner and no stock, callers who wait. Pure.

    rate    rows/s: answered, refused and what the queues grew by, evened out; of runs that refer to the service, what
            they send once their pipeline does what is planned, if that is more: so it is ordered together with the
            policies, and not after their start-up
    each    seconds of a replica for a row: tokens of a row * seconds of a token. A pass is cheaper by the token the
            fuller it is, and passes fill by themselves when more is asked. So the cost is kept for each size of pass,
            and the cheapest that was measured is what a busy replica does. It is too dear while only small passes
            were seen, never too cheap
    load    rate * each + waiting * each / CATCH_UP: replicas that would be busy all the time
    least   load / 0.8: what must be there now; enough: load / 0.6: what lasts. Between them nothing is done

More at once; fewer after as long as a start takes, without a break. Lost metrics: everything stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.planning.actions import Action
from orchestrator.planning.moves import hold, moves, staying, within
from orchestrator.planning.observed import ServiceMemory, ServiceMetrics, ServiceObserved
from orchestrator.planning.spec import Auto, External, Scaling, Static

MOST_BUSY, LEAST_BUSY, BUSY = 0.8, 0.6, 0.7
"""Shares of its replicas' time: above the first one is missing, below the second one too many; the aim."""
CATCH_UP_SECONDS = 60.0
"""What waits is to be answered within so long."""
RATE_NEW = 0.5
"""Weight of a new scrape in the rate: a burst of one interval counts half."""
FADE = 0.9
"""Per scrape, of what is remembered of one size of pass."""
ANOTHER_SPEED = 2.0
"""A pass of a known size that costs so much more, or so much less, is a new speed: all the others are forgotten."""
SIZES_PER_DOUBLING = 2
"""So finely sizes of passes are told apart: within one of them a token's cost differs by less than half."""
NOBODY = 0.001
"""Rows/s below which nobody asks any more."""
LEAST_ROWS = 16
"""Of an interval that teaches anything about cost."""
HOLD_SECONDS = 60.0
"""Before fewer are believed, at least: callers come in waves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A service as the scaler sees it."""

    name: str
    scaling: Scaling
    pool_limit: int | None = None
    startup_seconds: float = 240.0
    """Used until it has been measured."""
    stale_seconds: float = 120.0
    """Metrics older than this are lost metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDecision:
    """What to do now, the arithmetic, what to remember."""

    actions: tuple[Action, ...]
    current: int
    """Replicas that serve or are coming up, and are to stay."""
    wanted: int
    reason: str
    memory: ServiceMemory
    rows_per_second: float | None = None
    """Asked for."""
    seconds_per_row: float | None = None
    load: float | None = None
    least: int | None = None
    enough: int | None = None
    limits: tuple[str, ...] = ()
    hold_left_seconds: float | None = None
    blind: str = ""
    """Why it stands still; empty: it does not."""


def decide_service(spec: ServiceSpec, observed: ServiceObserved, now: float) -> ServiceDecision:
    """What to do with a service now. `now` in seconds, in the clock of `observed.at`."""
    current, memory = staying(observed.role), observed.memory
    age = now - observed.at
    lost = f"metrics are {age:.0f} s old" if age > spec.stale_seconds else ""
    if not lost and observed.metrics is not None:
        memory = learn_service(memory, observed.metrics, observed.at)
    if isinstance(spec.scaling, External):
        return _kept(current, memory, "scaled from outside")
    if isinstance(spec.scaling, Static):
        number, told = spec.scaling.replicas, f"held at {spec.scaling.replicas}"
        return replace(_kept(current, memory, told), wanted=number)
    if lost or observed.metrics is None:
        lost = lost or observed.lost
        return replace(_kept(current, memory, f"stands still: {lost}"), blind=lost)
    return _auto(spec, spec.scaling, replace(observed, memory=memory), now)


def learn_service(memory: ServiceMemory, seen: ServiceMetrics, at: float) -> ServiceMemory:
    """The memory after one scrape; unchanged if it was learned from before."""
    if memory.seen_at is not None and at <= memory.seen_at:
        return memory
    if seen.revision and seen.revision != memory.revision:
        # Another model has another speed; what is asked of it is the same.
        memory = replace(memory, costs=(), tokens=0.0, rows=0.0, revision=seen.revision)
    memory = replace(memory, seen_at=at)
    if seen.seconds <= 0:
        return memory
    # Who is refused asks again, so refusals at most double what is asked.
    asked = (seen.rows + min(seen.refused, seen.rows) + max(0, seen.grown)) / seen.seconds
    rate = asked if memory.rate is None else memory.rate + RATE_NEW * (asked - memory.rate)
    memory = replace(memory, rate=rate)
    return memory if seen.rows < LEAST_ROWS else _learn_cost(memory, seen)


def seconds_per_row(memory: ServiceMemory) -> float | None:
    """Of one replica whose passes are as full as any that were seen; None: not known."""
    if not memory.costs or memory.rows <= 0:
        return None
    return memory.tokens / memory.rows * min(busy / tokens for _, busy, tokens in memory.costs)


def _learn_cost(memory: ServiceMemory, seen: ServiceMetrics) -> ServiceMemory:
    tokens = float(seen.tokens or seen.rows)
    size = _size(tokens / seen.passes) if seen.passes else 0
    costs = {size: (busy, done) for size, busy, done in memory.costs}
    new = seen.busy_seconds / tokens
    if size in costs:
        known = costs[size][0] / costs[size][1]
        if not known / ANOTHER_SPEED <= new <= known * ANOTHER_SPEED:
            costs = {}
    busy, done = costs.get(size, (0.0, 0.0))
    costs[size] = (busy * FADE + seen.busy_seconds, done * FADE + tokens)
    return replace(
        memory,
        costs=tuple((size, *cost) for size, cost in sorted(costs.items())),
        tokens=memory.tokens * FADE + tokens,
        rows=memory.rows * FADE + seen.rows,
    )


def _size(tokens: float) -> int:
    return max(0, math.floor(SIZES_PER_DOUBLING * math.log2(tokens)))


def _auto(spec: ServiceSpec, bounds: Auto, observed: ServiceObserved, now: float) -> ServiceDecision:
    seen, memory, metrics = observed.role, observed.memory, observed.metrics
    current, each = staying(seen), seconds_per_row(memory)
    rate = _rate(observed)
    base = replace(_kept(current, memory, ""), rows_per_second=rate, seconds_per_row=each)
    if each is None or metrics is None:
        # One replica learns the speed; nobody asks a service that nobody can reach.
        least = max(bounds.minimum, 1 if rate else 0)
        target, limits = within(bounds, spec.pool_limit, max(current, least))
        why = "nobody has asked yet" if not rate else "its speed is not known yet"
        told = tuple(moves(spec.name, seen, target, why))
        return replace(base, actions=told, wanted=target, reason=why, limits=tuple(limits))
    load = (rate + metrics.waiting / CATCH_UP_SECONDS) * each
    some = 1 if rate or metrics.waiting else 0
    least, enough = max(some, _up(load / MOST_BUSY)), max(some, _up(load / LEAST_BUSY))
    target = current if least <= current <= enough else min(max(_up(load / BUSY), least), enough)
    target, limits = within(bounds, spec.pool_limit, target)
    startup = spec.startup_seconds if seen.startup_seconds is None else seen.startup_seconds
    memory, wanted, left = hold(memory, current, target, max(HOLD_SECONDS, startup), now)
    reason = _why(current, wanted, target, load, left)
    return replace(
        base,
        actions=tuple(moves(spec.name, seen, wanted, reason)),
        wanted=wanted,
        reason=reason,
        memory=memory,
        load=load,
        least=least,
        enough=enough,
        limits=tuple(limits),
        hold_left_seconds=left,
    )


def _rate(observed: ServiceObserved) -> float:
    """Measured, and what runs will send beyond what they send now."""
    measured = observed.memory.rate or 0.0
    measured = measured if measured >= NOBODY else 0.0
    more = max(0.0, observed.runs_will - observed.runs_rows)
    return measured + more


def _why(current: int, wanted: int, target: int, load: float, left: float | None) -> str:
    if wanted > current:
        return f"{wanted - current} more: {load:.2g} would be busy all the time"
    if wanted < current:
        return f"{current - wanted} fewer: {wanted} did for as long as a start takes"
    if left is not None:
        return f"{target} would do; held for {left:.0f} s more"
    return f"{load:.2g} would be busy all the time"


def _kept(current: int, memory: ServiceMemory, reason: str) -> ServiceDecision:
    return ServiceDecision(actions=(), current=current, wanted=current, reason=reason, memory=memory)


def _up(count: float) -> int:
    return math.ceil(count - 1e-9)
