"""The arithmetic of a pipeline: from rates and stock to replica counts at the least cost. Knows no replica, no history.

    feed     groups/s that the learner can take: batch / step, more if some are discarded,
             and no more than the staleness window lets through: (window - batch / 2) / (step + latency)
    load     replicas that a role keeps busy: feed * slot-seconds per group / slots
    slack    groups of the window beyond those that are in training, being worked on, or gathering into the next
             batch: the most that can be in stock, made and not yet trained
    stock    groups that are ready for the learner now; it outlasts a lost node, a burst, a long answer, and it
             turns whole replicas into fractions: a little under the load while it is high, over it while it is low
    reserve  the part of the slack that is never planned away

A group made ahead is not lost, so stock costs nothing but the start of a replica now and then. Hence two numbers,
with S the start-up of the role and all counts rounded up:

    least    what must be there now: feed - (stock - reserve) / (2 S): a replica ordered when the stock would
             reach the reserve in two start-ups serves before it does
    enough   what lasts: feed - (stock - reserve) / (8 S): one replica fewer is worth it if it is not missed for so
             long that its start is small beside it

Below the reserve both are feed + (reserve - stock) / (3 S). The stock never pays for more than one replica, so a step
change in load is answered in full at once. Without staleness there is no stock, and stages and step alternate: then
the cost of a step, (others' price + price * n) * (rest of the cycle + batch * seconds / (n * slots)), is least at
n = sqrt(others' price * batch * seconds / slots / (price * rest of the cycle)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.planning.spec import PipelineSpec

RESERVE = 0.7
"""Of the slack. Long answers that the staleness rule waits for need most of it (see README.md)."""
ORDER_AHEAD = 2.0
WORTH_A_START = 8.0
REFILL = 3.0
"""In start-ups of the role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The pipeline's throughput, groups/s, what bounds it, and its stock."""

    learner: float
    """What the learner can take."""
    staleness: float
    """What the staleness window lets through."""
    planned: float
    """What the replicas are counted for."""
    bound: str
    """What bounds `planned`: learner, staleness, or a role or pool with its limit."""
    latency_seconds: float
    """Of one group through all roles, without waiting."""
    slack_groups: float
    stock_groups: float

    @property
    def reserve_groups(self) -> float:
        """Stock that is not planned away."""
        return RESERVE * self.slack_groups


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of one role: replicas that are busy all the time, that must be there, that last."""

    load: float
    least: int
    enough: int


def bounded(flow: Flow) -> str:
    """What bounds the planned rate, as a clause."""
    known = {
        "learner": "what the learner takes",
        "staleness": "what the staleness window lets through",
    }
    return known.get(flow.bound, flow.bound)


def staleness_rate(spec: PipelineSpec, step_seconds: float, latency_seconds: float) -> float:
    """Groups/s that the window lets through, by Little's law. Without staleness, stages and step alternate."""
    seconds = step_seconds + latency_seconds
    if spec.max_staleness == 0:
        return spec.batch_groups / seconds
    return (spec.window_groups - spec.batch_groups / 2) / seconds


def slack_of(spec: PipelineSpec, rate: float, step_seconds: float, latency_seconds: float) -> float:
    """Groups of the window that neither work nor training nor the batch that gathers needs, at least 0."""
    busy = rate * (step_seconds + latency_seconds) + spec.batch_groups / 2
    return max(0.0, spec.window_groups - busy)


def numbers(flow: Flow, each: float, startup_seconds: float) -> Numbers:
    """For a role of which one replica does `each` groups/s."""
    if flow.planned <= 0:
        return Numbers(0.0, 0, 0)
    load = flow.planned / each
    least = load + _correction(flow, ORDER_AHEAD * startup_seconds, startup_seconds) / each
    enough = load + _correction(flow, WORTH_A_START * startup_seconds, startup_seconds) / each
    bottom = max(1.0, load - 1)
    return Numbers(load, _up(max(bottom, least)), _up(max(bottom, enough)))


def _correction(flow: Flow, lasting_seconds: float, startup_seconds: float) -> float:
    """Groups/s more (stock below the reserve) or fewer (above it)."""
    above = flow.stock_groups - flow.reserve_groups
    seconds = lasting_seconds if above > 0 else REFILL * startup_seconds
    return -above / max(1.0, seconds)


def _up(count: float) -> int:
    return math.ceil(count - 1e-9)


def alternating(
    load_seconds: float, price: float, others_price: float, rest_seconds: float, most: int
) -> int:
    """The number of the least cost per step where stages and step alternate, from 1 to `most`.

    `load_seconds`: a batch on one replica; `others_price`: learner and other roles, per hour; `rest_seconds`: of the
    cycle without this role.
    """
    best = math.sqrt(others_price * load_seconds / (max(price, 1e-9) * max(rest_seconds, 1e-9)))
    low = max(1, min(most, math.floor(min(best, most))))
    return min(
        (low, min(low + 1, most)),
        key=lambda n: (others_price + price * n) * (rest_seconds + load_seconds / n),
    )


def shared_rate(
    wanted: float, limits: Mapping[str, int], counts_at: Callable[[float], Mapping[str, int]]
) -> tuple[float, str]:
    """The highest rate up to `wanted` whose counts per pool fit all limits, and the pool that binds ('': none).

    `counts_at(rate)` gives the replicas per pool; it must not fall as the rate rises. What a pool has at no rate at all
    cannot be planned away: where that alone is beyond its limit, the pool bounds what needs more than that.
    """
    floor = counts_at(0.0)
    most = {pool: max(limit, floor.get(pool, 0)) for pool, limit in limits.items()}

    def broken(rate: float) -> str:
        counts = counts_at(rate)
        return next((pool for pool, limit in most.items() if counts.get(pool, 0) > limit), "")

    pool = broken(wanted)
    if not pool:
        return wanted, ""
    low, high = 0.0, wanted
    for _ in range(40):
        middle = (low + high) / 2
        at_middle = broken(middle)
        if at_middle:
            high, pool = middle, at_middle
        else:
            low = middle
    return low, pool
