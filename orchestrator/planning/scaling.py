"""Decides the replica counts that keep the learner fed at the least cost. Knows no cluster, clock or chance.

    Observed ──▶ learn ──▶ flow ──────────▶ per role ───────────────▶ list[Action]
                 rates     learner's           least and enough (sizing.py): between them
                 step      appetite, bounded   nothing is done, outside `enough` is wanted;
                 stock     by window, pools    clamped, held, drained

More replicas are ordered at once; what is coming up counts as there. Fewer are believed only after the role has
had too many for as long as a new one would take to start: keeping it that long costs what starting it again
would. Lost metrics, an unknown rate: everything stays as it is, and the reason is recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.planning.actions import Action, Drain, Remember, Scale, Undrain
from orchestrator.planning.decision import Decision, RoleDecision
from orchestrator.planning.observed import Memory, Observed, Replica, ReplicaState, RoleMemory, RoleObserved
from orchestrator.planning.rates import Estimate, learn_role, learn_steps, step_estimate, work_estimate
from orchestrator.planning.sizing import (
    RESERVE,
    Flow,
    Numbers,
    alternating,
    bounded,
    numbers,
    shared_rate,
    slack_of,
    staleness_rate,
)
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Static

DISCARD_FADE = 0.98
"""Per scrape: discards of about the last 50 scrapes count."""
HOLD_WITH_STOCK = 0.5
"""Of the start-up, where the stock is above its reserve."""
STOCK_NEW = 0.25
"""Weight of a new scrape in the stock: a batch that comes and goes is evened out over about four."""
LEAVING = (ReplicaState.DRAINING, ReplicaState.RECLAIMED)


def plan(spec: PipelineSpec, observed: Observed, now: float) -> list[Action]:
    """What to do now. Always ends with what to remember for the next call."""
    return list(decide(spec, observed, now).actions)


def decide(spec: PipelineSpec, observed: Observed, now: float) -> Decision:
    """The same with its arithmetic. `now` in seconds, in the clock of `observed.at`."""
    age = now - observed.at
    lost = f"metrics are {age:.0f} s old" if age > spec.stale_seconds else ""
    memory = observed.memory if lost else learn(spec, observed)
    step = step_estimate(memory.steps, spec.step_seconds)
    works = {role.name: _work(role, memory) for role in spec.roles}
    flow = None if lost else _flow(spec, observed, memory, step, works)
    picture = _Picture(spec, observed, memory, flow, works, lost or _blind(observed, step), now)
    parts = [_role(picture, role) for role in spec.roles]
    memory = replace(memory, roles=memory.roles | {part.decision.role: part.memory for part in parts})
    actions = [action for part in parts for action in part.actions]
    return Decision(
        actions=(*actions, Remember(memory)),
        roles=tuple(part.decision for part in parts),
        memory=memory,
        flow=flow,
        step_seconds=None if step is None else step.mean,
        discarded_share=_discarded(memory),
        verdict=_verdict(spec, picture.blind, flow, len(actions)),
    )


def learn(spec: PipelineSpec, observed: Observed) -> Memory:
    """The memory after this scrape; unchanged if it was learned from before."""
    memory = observed.memory
    if memory.seen_at is not None and observed.at <= memory.seen_at:
        return memory
    roles = dict(memory.roles)
    for role in spec.roles:
        seen = observed.roles.get(role.name)
        if seen is not None and seen.metrics is not None:
            roles[role.name] = learn_role(roles.get(role.name, RoleMemory()), seen.metrics)
    steps, discarded, stock = memory.steps, memory.discarded, memory.stock
    if observed.learner is not None:
        steps = learn_steps(steps, observed.learner)
        discarded = (
            discarded[0] * DISCARD_FADE + observed.learner.discarded_groups,
            discarded[1] * DISCARD_FADE + observed.learner.trained_groups,
        )
        ready = float(observed.learner.ready_groups)
        stock = ready if stock is None else stock + STOCK_NEW * (ready - stock)
    return Memory(roles=roles, steps=steps, discarded=discarded, stock=stock, seen_at=observed.at)


@dataclass(frozen=True, slots=True)
class _Picture:
    spec: PipelineSpec
    observed: Observed
    memory: Memory
    flow: Flow | None
    works: dict[str, Estimate | None]
    blind: str
    """Why nothing may be decided; empty: all is seen."""
    now: float


@dataclass(frozen=True, slots=True)
class _Part:
    decision: RoleDecision
    actions: list[Action]
    memory: RoleMemory


def _work(role: RoleSpec, memory: Memory) -> Estimate | None:
    return work_estimate(memory.roles.get(role.name, RoleMemory()), role.seconds_per_group)


def _blind(observed: Observed, step: Estimate | None) -> str:
    if observed.learner is None:
        return "the learner's metrics are lost"
    return "the learner's step time is not known yet" if step is None else ""


def _discarded(memory: Memory) -> float:
    """Groups discarded for each one trained, at most 1."""
    discarded, trained = memory.discarded
    return min(1.0, discarded / trained) if trained > 0 else 0.0


def _staying(seen: RoleObserved) -> int:
    """Replicas that the Deployment's number is good for: without those that drain or are being taken."""
    return max(0, seen.desired - seen.count(*LEAVING))


# ------------------------------------------------------------------ the flow


def _flow(
    spec: PipelineSpec,
    observed: Observed,
    memory: Memory,
    step: Estimate | None,
    works: dict[str, Estimate | None],
) -> Flow | None:
    if step is None or observed.learner is None:
        return None
    latency = sum(work.mean for work in works.values() if work is not None)
    appetite = 0.0 if observed.learner.paused else spec.batch_groups / step.mean * (1 + _discarded(memory))
    window = staleness_rate(spec, step.mean, latency)
    rate, bound = (appetite, "learner") if appetite <= window else (window, "staleness")
    for role in spec.roles:
        limit, told = _role_limit(role, observed)
        work = works[role.name]
        if limit is not None and work is not None and limit * role.slots / work.mean < rate:
            rate, bound = limit * role.slots / work.mean, told
    rate, pool = shared_rate(rate, spec.pools, lambda rate: _pool_counts(spec, works, rate))
    slack = slack_of(spec, rate, step.mean, latency)
    return Flow(
        learner=appetite,
        staleness=window,
        planned=rate,
        bound=f"pool {pool} has room for {spec.pools[pool]}" if pool else bound,
        latency_seconds=latency,
        slack_groups=slack,
        stock_groups=RESERVE * slack if memory.stock is None else min(memory.stock, slack),
    )


def _role_limit(role: RoleSpec, observed: Observed) -> tuple[int | None, str]:
    """Replicas that a role can have at most, where that is a limit on the others' use, and its words."""
    if isinstance(role.scaling, Auto):
        return role.scaling.maximum, f"{role.name} has at most {role.scaling.maximum}"
    if isinstance(role.scaling, Static):
        return role.scaling.replicas, f"{role.name} is held at {role.scaling.replicas}"
    seen = observed.roles.get(role.name)
    if seen is None or seen.desired == 0:
        return None, ""
    return seen.desired, f"{role.name} is scaled from outside to {seen.desired}"


def _pool_counts(spec: PipelineSpec, works: dict[str, Estimate | None], rate: float) -> dict[str, int]:
    counts: dict[str, int] = {}
    for role in spec.roles:
        work = works[role.name]
        needed = math.ceil(rate * work.mean / role.slots - 1e-9) if work is not None else 0
        if isinstance(role.scaling, Auto):
            needed = max(needed, role.scaling.minimum)
        elif isinstance(role.scaling, Static):
            needed = role.scaling.replicas
        pool = role.pool or role.name
        counts[pool] = counts.get(pool, 0) + needed
    return counts


# ------------------------------------------------------------------ one role


def _role(picture: _Picture, role: RoleSpec) -> _Part:
    seen = picture.observed.roles.get(role.name, RoleObserved(desired=0))
    memory = picture.memory.roles.get(role.name, RoleMemory())
    current = _staying(seen)
    if isinstance(role.scaling, External):
        kept = RoleDecision(
            role=role.name, mode="external", current=current, wanted=current, reason="scaled from outside"
        )
        return _Part(kept, [], memory)
    if picture.spec.suspended:
        told = RoleDecision(
            role=role.name, mode=_mode(role), current=current, wanted=0, reason="the run is suspended"
        )
        return _Part(told, _actions(role, seen, 0, told.reason), memory)
    if isinstance(role.scaling, Static):
        wanted = role.scaling.replicas
        held = RoleDecision(
            role=role.name, mode="static", current=current, wanted=wanted, reason=f"held at {wanted}"
        )
        return _Part(held, _actions(role, seen, wanted, held.reason), memory)
    return _auto(picture, role, role.scaling, seen, memory)


def _mode(role: RoleSpec) -> str:
    return type(role.scaling).__name__.lower()


def _auto(picture: _Picture, role: RoleSpec, bounds: Auto, seen: RoleObserved, memory: RoleMemory) -> _Part:
    current = _staying(seen)
    work, flow = picture.works[role.name], picture.flow
    startup = role.startup_seconds if seen.startup_seconds is None else seen.startup_seconds
    base = RoleDecision(
        role=role.name,
        mode="auto",
        current=current,
        wanted=current,
        reason="",
        backlog_groups=None if seen.metrics is None else seen.metrics.backlog_groups,
        startup_seconds=startup,
    )
    why = picture.blind or ("" if seen.metrics is not None else "its metrics are lost")
    if why or flow is None:
        return _Part(replace(base, reason=f"stands still: {why}"), [], memory)
    if work is None:
        first = max(current, bounds.minimum, 1)
        told = replace(base, wanted=first, reason="its speed is not known yet")
        return _Part(told, _actions(role, seen, first, told.reason), memory)
    counts = _numbers(picture, role, bounds, work, flow, startup)
    target = current if counts.least <= current <= counts.enough else counts.enough
    target, limits = _clamp(picture.spec, role, bounds, target, flow)
    # With stock to live on, a mistake is mended before anybody waits: half as long is enough to be sure.
    hold = startup * (HOLD_WITH_STOCK if flow.stock_groups >= flow.reserve_groups else 1.0)
    memory, wanted, left = _hold(memory, current, target, hold, picture.now)
    counted = replace(
        base,
        wanted=wanted,
        limits=limits,
        seconds_per_group=work.mean,
        error=work.error,
        groups_per_second=role.slots / work.mean,
        load=counts.load,
        least=counts.least,
        enough=counts.enough,
        hold_left_seconds=left,
        reason=_why(current, wanted, target, counts, left),
    )
    return _Part(counted, _actions(role, seen, wanted, counted.reason), memory)


def _numbers(
    picture: _Picture, role: RoleSpec, bounds: Auto, work: Estimate, flow: Flow, startup: float
) -> Numbers:
    if picture.spec.max_staleness > 0 or flow.planned <= 0:
        return numbers(flow, role.slots / work.mean, startup)
    # Prices decide here: a faster stage shortens the learner's wait, which costs what everybody else costs.
    loads = {
        one.name: flow.planned * known.mean / one.slots
        for one in picture.spec.roles
        if (known := picture.works[one.name]) is not None
    }
    others = picture.spec.learner_price + sum(
        one.price * loads.get(one.name, 0.0) for one in picture.spec.roles if one.name != role.name
    )
    batch = picture.spec.batch_groups * work.mean / role.slots
    rest = picture.spec.batch_groups / flow.planned
    best = alternating(batch, role.price, others, rest, bounds.maximum)
    return Numbers(loads[role.name], best, best)


def _clamp(
    spec: PipelineSpec, role: RoleSpec, bounds: Auto, target: int, flow: Flow
) -> tuple[int, tuple[str, ...]]:
    limits = []
    if flow.bound != "learner":
        limits.append(
            "the pipeline is bounded by the staleness window" if flow.bound == "staleness" else flow.bound
        )
    if target < bounds.minimum:
        target = bounds.minimum
        limits.append(f"min {bounds.minimum}")
    if target > bounds.maximum:
        target = bounds.maximum
        limits.append(f"max {bounds.maximum}")
    room = spec.pools.get(role.pool or role.name)
    if room is not None and target > room:
        target = room
        limits.append(f"pool limit {room}")
    return target, tuple(limits)


def _hold(
    memory: RoleMemory, current: int, target: int, hold: float, now: float
) -> tuple[RoleMemory, int, float | None]:
    """The number after the hold, and how long it lasts yet. More at once, fewer after `hold` seconds."""
    if target >= current:
        return replace(memory, surplus_since=None, surplus_keep=0), target, None
    if memory.surplus_since is None:
        return replace(memory, surplus_since=now, surplus_keep=target), current, hold
    keep = max(memory.surplus_keep, target)
    left = memory.surplus_since + hold - now
    if left > 0:
        return replace(memory, surplus_keep=keep), current, left
    return replace(memory, surplus_since=None, surplus_keep=0), keep, None


def _why(current: int, wanted: int, target: int, counts: Numbers, left: float | None) -> str:
    if wanted > current:
        return f"{wanted - current} more: {counts.least} must be there"
    if wanted < current:
        return f"{current - wanted} fewer: {wanted} did for as long as a start takes"
    if left is not None:
        return f"{target} would do; held for {left:.0f} s more"
    return (
        f"{counts.least} must be there, {counts.enough} last"
        if counts.least < counts.enough
        else "as it should be"
    )


def _actions(role: RoleSpec, seen: RoleObserved, wanted: int, reason: str) -> list[Action]:
    """From what is there to `wanted` replicas that stay. Nothing that holds a group is ever removed."""
    draining = [replica for replica in seen.replicas if replica.state is ReplicaState.DRAINING]
    difference = wanted - _staying(seen)
    actions: list[Action] = []
    if difference > 0:
        # A warm replica that drains is back at once; the one that still holds most lost least.
        back = sorted(draining, key=lambda replica: -replica.held_groups)[:difference]
        actions += [Undrain(role.name, replica.name, reason) for replica in back]
        draining = [replica for replica in draining if replica not in back]
        difference -= len(back)
    leave = [replica for replica in draining if replica.held_groups == 0]
    if difference < 0:
        for replica in _victims(seen)[:-difference]:
            if replica.held_groups:
                actions.append(Drain(role.name, replica.name, reason))
            else:
                leave.append(replica)
        # Pods that were ordered and are not there yet need no name.
        difference += min(-difference, len(_victims(seen)))
    number = seen.desired + difference - len(leave)
    if number != seen.desired:
        gone = tuple(sorted(replica.name for replica in leave))
        only_drained = difference == 0 and set(gone) <= {replica.name for replica in draining}
        actions.append(Scale(role.name, number, "drained" if only_drained else reason, gone))
    return actions


def _victims(seen: RoleObserved) -> list[Replica]:
    """Who goes first: what is still starting (the youngest), then the emptiest, the slowest, the youngest."""
    staying = [replica for replica in seen.replicas if replica.state not in LEAVING]
    return sorted(
        staying,
        key=lambda replica: (
            replica.state is not ReplicaState.STARTING,
            replica.held_groups,
            replica.pace,
            replica.age_seconds,
            replica.name,
        ),
    )


def _verdict(spec: PipelineSpec, blind: str, flow: Flow | None, actions: int) -> str:
    if spec.suspended:
        return "suspended: every role to zero"
    if flow is None or blind:
        return f"stands still: {blind}"
    done = "nothing to do" if actions == 0 else f"{actions} action{'s' if actions > 1 else ''}"
    return f"planned for {flow.planned:.4g} groups/s ({bounded(flow)}): {done}"
