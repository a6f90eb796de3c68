"""Decides the replica counts that keep the learner fed at the least cost. Knows no cluster, clock or chance.

    Observed ──▶ learn ──▶ flow ──────────▶ per role ───────────────▶ shared ────▶ moves ──▶ list[Action]
                 rates     learner's           least and enough (sizing.py):     pools         order, drain,
                 step      appetite, bounded   between them nothing is done,     fit           take off
                 stock     by window, pools    outside `enough` is wanted;
                                               clamped, held

More replicas are ordered at once; what is coming up counts as there. Fewer are believed only after the role has
had too many for as long as a new one would take to start: keeping it that long costs what starting it again
would. Lost metrics, an unknown rate: everything stays as it is, and the reason is recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.planning.actions import Action, Remember
from orchestrator.planning.decision import Decision, RoleDecision
from orchestrator.planning.flow import discarded_share, flow_of
from orchestrator.planning.moves import hold, moves, staying, within
from orchestrator.planning.observed import Memory, Observed, RoleMemory, RoleObserved
from orchestrator.planning.rates import Estimate, learn_role, learn_steps, step_estimate, work_estimate
from orchestrator.planning.sharing import Part, share_pools
from orchestrator.planning.sizing import Flow, Numbers, alternating, bounded, numbers
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Static

DISCARD_FADE = 0.98
"""Per scrape: discards of about the last 50 scrapes count."""
HOLD_WITH_STOCK = 0.5
"""Of the start-up, where the stock is above its reserve."""
STOCK_NEW = 0.25
"""Weight of a new scrape in the stock: a batch that comes and goes is evened out over about four."""


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
    flow = None if lost else flow_of(spec, observed, memory, step, works)
    picture = _Picture(spec, observed, memory, flow, works, lost or _blind(observed, step), now)
    parts = share_pools(spec, [_role(picture, role) for role in spec.roles])
    memory = replace(memory, roles=memory.roles | {part.decision.role: part.memory for part in parts})
    actions = [action for part in parts if part.acts for action in _moves(observed, part.decision)]
    return Decision(
        actions=(*actions, Remember(memory)),
        roles=tuple(part.decision for part in parts),
        memory=memory,
        flow=flow,
        step_seconds=None if step is None else step.mean,
        discarded_share=discarded_share(memory),
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


def _moves(observed: Observed, decision: RoleDecision) -> list[Action]:
    seen = observed.roles.get(decision.role, RoleObserved(desired=0))
    return moves(decision.role, seen, decision.wanted, decision.reason)


def _work(role: RoleSpec, memory: Memory) -> Estimate | None:
    return work_estimate(memory.roles.get(role.name, RoleMemory()), role.seconds_per_group)


def _blind(observed: Observed, step: Estimate | None) -> str:
    if observed.learner is None:
        return "the learner's metrics are lost"
    return "the learner's step time is not known yet" if step is None else ""


def _role(picture: _Picture, role: RoleSpec) -> Part:
    seen = picture.observed.roles.get(role.name, RoleObserved(desired=0))
    memory = picture.memory.roles.get(role.name, RoleMemory())
    current = staying(seen)
    if isinstance(role.scaling, External):
        kept = RoleDecision(
            role=role.name, mode="external", current=current, wanted=current, reason="scaled from outside"
        )
        return Part(kept, memory, current, acts=False)
    if picture.spec.suspended:
        told = RoleDecision(
            role=role.name, mode=_mode(role), current=current, wanted=0, reason="the run is suspended"
        )
        return Part(told, memory)
    if isinstance(role.scaling, Static):
        wanted = role.scaling.replicas
        held = RoleDecision(
            role=role.name, mode="static", current=current, wanted=wanted, reason=f"held at {wanted}"
        )
        return Part(held, memory, wanted, wanted)
    return _auto(picture, role, role.scaling, seen, memory)


def _mode(role: RoleSpec) -> str:
    return type(role.scaling).__name__.lower()


def _auto(picture: _Picture, role: RoleSpec, bounds: Auto, seen: RoleObserved, memory: RoleMemory) -> Part:
    current = staying(seen)
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
        return Part(replace(base, reason=f"stands still: {why}"), memory, current, acts=False)
    if work is None:
        first, limits = _clamp(picture.spec, role, bounds, max(current, 1), flow)
        told = replace(base, wanted=first, limits=limits, reason="its speed is not known yet")
        return Part(told, memory, first, first)
    counts = _numbers(picture, role, bounds, work, flow, startup)
    target = current if counts.least <= current <= counts.enough else counts.enough
    target, limits = _clamp(picture.spec, role, bounds, target, flow)
    # With stock to live on, a mistake is mended before anybody waits: half as long is enough to be sure.
    seconds = startup * (HOLD_WITH_STOCK if flow.stock_groups >= flow.reserve_groups else 1.0)
    memory, wanted, left = hold(memory, current, target, seconds, picture.now)
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
    return Part(counted, memory, target, min(target, max(bounds.minimum, math.ceil(counts.load - 1e-9))))


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
    # Beyond a slot for each group of the batch none would ever get one.
    most = min(bounds.maximum, math.ceil(picture.spec.batch_groups / role.slots))
    best = alternating(batch, role.price, others, rest, most)
    return Numbers(loads[role.name], best, best)


def _clamp(
    spec: PipelineSpec, role: RoleSpec, bounds: Auto, target: int, flow: Flow
) -> tuple[int, tuple[str, ...]]:
    limits = []
    if flow.bound != "learner":
        limits.append(
            "the pipeline is bounded by the staleness window" if flow.bound == "staleness" else flow.bound
        )
    target, reached = within(bounds, spec.pools.get(role.pool or role.name), target)
    return target, (*limits, *reached)


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


def _verdict(spec: PipelineSpec, blind: str, flow: Flow | None, actions: int) -> str:
    if spec.suspended:
        return "suspended: every role to zero"
    if flow is None or blind:
        return f"stands still: {blind}"
    done = "nothing to do" if actions == 0 else f"{actions} action{'s' if actions > 1 else ''}"
    return f"planned for {flow.planned:.4g} groups/s ({bounded(flow)}): {done}"
