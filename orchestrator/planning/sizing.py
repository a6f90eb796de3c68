"""The arithmetic of a pipeline: from rates to replica counts at the least cost. Knows no replica and no history.

    feed     groups/s that the learner can take: batch / step, more if some are discarded,
             and no more than the staleness window lets through: (window - batch / 2) / (step + latency)
    load     replicas that a role keeps busy: feed * slot-seconds per group / slots
    slack    groups of the window beyond those that are in training, being worked on, or gathering into the next
             batch: what is left to absorb long answers and uneven arrivals
    starved  share of the time for which the learner waits for a role of n replicas: with r = load / n it is that
             of a buffer of `slack` groups between two random flows, (1 - r) r^K / (1 - r^(K + 1)) (M/M/1/K)
    cost     price * n + starved * (what all roles and the learner cost together): an hour in which the learner
             waits is paid in full; the number of the least cost is wanted
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.planning.spec import PipelineSpec


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a number of replicas would come to."""

    replicas: int
    utilisation: float
    starved: float
    cost: float
    """Per hour, the waiting learner's share included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The pipeline's throughput, groups/s, and what bounds it."""

    learner: float
    """What the learner can take."""
    staleness: float
    """What the staleness window lets through."""
    planned: float
    """What the replicas are counted for."""
    slack_groups: float
    latency_seconds: float
    """Of one group through all roles, without waiting."""
    bound: str
    """What bounds `planned`: learner, staleness, or a role or pool with its limit."""


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


def starved_share(load: float, replicas: int, slack_groups: float) -> float:
    """Share of time for which the learner waits for this role; 1 without a replica."""
    if load <= 0:
        return 0.0
    if replicas <= 0:
        return 1.0
    ratio = load / replicas
    if abs(ratio - 1) < 1e-6:
        return 1 / (slack_groups + 1)
    if ratio > 1:
        # The same formula, divided through by r^(K + 1) so that nothing overflows.
        inverse = ratio ** -(slack_groups + 1)
        return (1 - 1 / ratio) / (1 - inverse)
    power = ratio**slack_groups
    return (1 - ratio) * power / (1 - power * ratio)


def candidate(load: float, replicas: int, price: float, waiting_price: float, slack: float) -> Candidate:
    """What `replicas` would come to at `load`. `waiting_price`: of an hour in which the learner waits."""
    starved = starved_share(load, replicas, slack)
    utilisation = min(1.0, load / replicas) if replicas else 0.0
    return Candidate(replicas, utilisation, starved, price * replicas + waiting_price * starved)


def cheapest(load: float, price: float, waiting_price: float, slack: float, most: int) -> int:
    """The number of the least cost, at most `most`. 0 only without load."""
    if load <= 0:
        return 0
    # The cost is that of the waiting learner below the load and that of the replicas above it: no need to look
    # further than twice the load.
    low, high = max(1, math.floor(load * 0.8)), max(2, math.ceil(2 * load) + 1)
    if low >= most:
        return max(1, most)
    counts = range(low, min(high, most) + 1)
    return min(counts, key=lambda n: (candidate(load, n, price, waiting_price, slack).cost, n))


def shared_rate(
    wanted: float, limits: Mapping[str, int], counts_at: Callable[[float], Mapping[str, int]]
) -> tuple[float, str]:
    """The highest rate up to `wanted` whose counts per pool fit all limits, and the pool that binds ('': none).

    `counts_at(rate)` gives the replicas per pool; it must not fall as the rate rises.
    """

    def broken(rate: float) -> str:
        counts = counts_at(rate)
        return next((pool for pool, limit in limits.items() if counts.get(pool, 0) > limit), "")

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
