"""The pipeline's rate at this moment: the learner's appetite, bounded by window, roles and pools. Decides no number."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.planning.moves import staying
from orchestrator.planning.observed import Memory, Observed, RoleObserved
from orchestrator.planning.rates import Estimate
from orchestrator.planning.sizing import RESERVE, Flow, shared_rate, slack_of, staleness_rate
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Static


def discarded_share(memory: Memory) -> float:
    """Groups discarded for each one trained, at most 1."""
    discarded, trained = memory.discarded
    return min(1.0, discarded / trained) if trained > 0 else 0.0


def flow_of(
    spec: PipelineSpec,
    observed: Observed,
    memory: Memory,
    step: Estimate | None,
    works: Mapping[str, Estimate | None],
) -> Flow | None:
    """The flow at this moment; None where the learner's speed or what it has ready is not known."""
    if step is None or observed.learner is None:
        return None
    latency = sum(work.mean for work in works.values() if work is not None)
    appetite = (
        0.0 if observed.learner.paused else spec.batch_groups / step.mean * (1 + discarded_share(memory))
    )
    window = staleness_rate(spec, step.mean, latency)
    rate, bound = (appetite, "learner") if appetite <= window else (window, "staleness")
    least = _pool_counts(spec, observed, works, 0.0)
    for role in spec.roles:
        limit, told = _role_limit(spec, role, observed, least)
        work = works[role.name]
        if limit is not None and work is not None and limit * role.slots / work.mean < rate:
            rate, bound = limit * role.slots / work.mean, told
    rate, pool = shared_rate(rate, spec.pools, lambda rate: _pool_counts(spec, observed, works, rate))
    slack = slack_of(spec, rate, step.mean, latency)
    return Flow(
        learner=appetite,
        staleness=window,
        planned=rate,
        bound=_room(spec, pool) if pool else bound,
        latency_seconds=latency,
        slack_groups=slack,
        stock_groups=RESERVE * slack if memory.stock is None else min(memory.stock, slack),
    )


def _role_limit(
    spec: PipelineSpec, role: RoleSpec, observed: Observed, least: Mapping[str, int]
) -> tuple[int | None, str]:
    """Replicas that a role can have at most, where that is a limit on the others' use, and its words.

    least: replicas of each pool at no rate at all. Where they are more than it has room for, some of those that are not
    ours to decide never come up; one is counted on, since for none there would be nothing to plan.
    """
    pool = role.pool or role.name
    room = spec.pools.get(pool)
    count, told = _told_limit(role, observed)
    if count is None or room is None:
        return count, told
    there = room if isinstance(role.scaling, Auto) else max(min(1, room), count - max(0, least[pool] - room))
    return (there, _room(spec, pool)) if there < count else (count, told)


def _told_limit(role: RoleSpec, observed: Observed) -> tuple[int | None, str]:
    """The same without its pool."""
    if isinstance(role.scaling, Auto):
        return role.scaling.maximum, f"{role.name} has at most {role.scaling.maximum}"
    if isinstance(role.scaling, Static):
        return role.scaling.replicas, f"{role.name} is held at {role.scaling.replicas}"
    seen = observed.roles.get(role.name)
    if seen is None or seen.desired == 0:
        return None, ""
    return seen.desired, f"{role.name} is scaled from outside to {seen.desired}"


def _room(spec: PipelineSpec, pool: str) -> str:
    return f"pool {pool} has room for {spec.pools[pool]}"


def _pool_counts(
    spec: PipelineSpec, observed: Observed, works: Mapping[str, Estimate | None], rate: float
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for role in spec.roles:
        pool = role.pool or role.name
        counts[pool] = counts.get(pool, 0) + _count(
            role, observed.roles.get(role.name), works[role.name], rate
        )
    return counts


def _count(role: RoleSpec, seen: RoleObserved | None, work: Estimate | None, rate: float) -> int:
    """Replicas of a role at `rate`. What is not ours to decide, or cannot be decided now, takes what it has."""
    there = 0 if seen is None else staying(seen)
    if isinstance(role.scaling, External):
        return there
    if isinstance(role.scaling, Static):
        return role.scaling.replicas
    if work is None:
        return max(there, role.scaling.minimum, 1)
    if seen is not None and seen.metrics is None:
        return there
    return max(math.ceil(rate * work.mean / role.slots - 1e-9), role.scaling.minimum)
