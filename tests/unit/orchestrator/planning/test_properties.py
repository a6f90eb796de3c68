"""What holds of every plan, whatever is seen: found by searching, not by examples."""

import math
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.planning.actions import Drain, Remember, Scale, Undrain
from orchestrator.planning.decision import Decision
from orchestrator.planning.observed import (
    LearnerObserved,
    Memory,
    Observed,
    Replica,
    ReplicaState,
    RoleMemory,
    RoleMetrics,
    RoleObserved,
)
from orchestrator.planning.rates import learn_role, work_estimate
from orchestrator.planning.scaling import decide
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Static

NAMES = ("policy", "reference", "reward")
LEAVING = (ReplicaState.DRAINING, ReplicaState.RECLAIMED)
SEARCH = settings(max_examples=100, deadline=None)

modes = st.one_of(
    st.builds(lambda low, more: Auto(low, low + more), st.integers(0, 4), st.integers(0, 30)),
    st.builds(Static, st.integers(0, 10)),
    st.just(External()),
)


@st.composite
def specs(
    draw: st.DrawFn, scaling: st.SearchStrategy[object] = modes, *, suspended: bool = False
) -> PipelineSpec:
    roles = tuple(
        RoleSpec(
            name=name,
            scaling=draw(scaling),  # type: ignore[arg-type]
            slots=draw(st.integers(1, 8)),
            price=draw(st.floats(0.1, 5)),
            pool=draw(st.sampled_from(["", "shared"])),
            startup_seconds=draw(st.floats(1, 900)),
        )
        for name in NAMES
    )
    pools = draw(st.dictionaries(st.sampled_from([*NAMES, "shared"]), st.integers(1, 30)))
    return PipelineSpec(
        roles=roles,
        batch_groups=draw(st.integers(1, 256)),
        max_staleness=draw(st.integers(0, 8)),
        pools=pools,
        suspended=suspended,
    )


@st.composite
def pods(draw: st.DrawFn, name: str, *, metrics: bool = True) -> RoleObserved:
    states = draw(st.lists(st.sampled_from(list(ReplicaState)), max_size=12))
    replicas = tuple(
        Replica(
            f"{name}-{index}",
            state,
            0 if state is ReplicaState.STARTING else draw(st.integers(0, 4)),
            pace=draw(st.sampled_from([0.5, 1.0])),
            age_seconds=draw(st.floats(0, 1000)),
        )
        for index, state in enumerate(states)
    )
    seconds, done = draw(st.floats(0.1, 300)), draw(st.integers(0, 64))
    scrape = RoleMetrics(
        busy_seconds=seconds * done, completed_groups=done, backlog_groups=draw(st.integers(0, 500))
    )
    ordered = draw(st.integers(0, 3))
    return RoleObserved(
        desired=len(replicas) + ordered, replicas=replicas, metrics=scrape if metrics else None
    )


@st.composite
def pictures(draw: st.DrawFn, *, lost: bool = False) -> Observed:
    """Anything that can be seen; `lost`: no role has metrics."""
    blocks = st.lists(st.tuples(st.floats(1, 5000), st.integers(16, 40)), max_size=4)
    memory = Memory(
        roles={name: RoleMemory(blocks=tuple(draw(blocks))) for name in NAMES},
        steps=tuple(draw(st.lists(st.floats(1, 300), max_size=4))),
        stock=draw(st.one_of(st.none(), st.floats(0, 1000))),
    )
    learner = LearnerObserved(
        step_seconds=tuple(draw(st.lists(st.floats(1, 300), max_size=2))),
        trained_groups=draw(st.integers(0, 256)),
        discarded_groups=draw(st.integers(0, 50)),
        ready_groups=draw(st.integers(0, 1000)),
        paused=draw(st.booleans()),
    )
    return Observed(
        at=1000.0,
        roles={name: draw(pods(name, metrics=not lost)) for name in NAMES},
        learner=learner,
        memory=memory,
    )


def after(seen: RoleObserved, orders: list[Scale | Drain | Undrain]) -> int:
    """Replicas that stay once the orders are carried out."""
    number = seen.desired
    leaving = {replica.name for replica in seen.replicas if replica.state in LEAVING}
    for order in orders:
        if isinstance(order, Scale):
            number = order.replicas
            leaving -= set(order.remove)
        elif isinstance(order, Drain):
            leaving.add(order.replica)
        else:
            leaving.discard(order.replica)
    return number - len(leaving)


def orders_of(
    spec: PipelineSpec, seen: Observed, now: float = 1000.0
) -> dict[str, list[Scale | Drain | Undrain]]:
    found: dict[str, list[Scale | Drain | Undrain]] = {name: [] for name in NAMES}
    for action in decide(spec, seen, now).actions:
        if not isinstance(action, Remember):
            found[action.role].append(action)
    return found


@SEARCH
@given(specs(), pictures())
def test_no_number_passes_its_maximum_or_its_pool(spec: PipelineSpec, seen: Observed) -> None:
    """What is wanted of an Auto role is within its bounds, and grown pools hold all that share them."""
    decision = decide(spec, seen, 1000.0)
    wanted = {role.role: role.wanted for role in decision.roles}
    current = {role.role: role.current for role in decision.roles}
    for role in spec.roles:
        if isinstance(role.scaling, Auto):
            most = min(role.scaling.maximum, spec.pools.get(role.pool or role.name, 10**9))
            assert wanted[role.name] <= max(most, current[role.name])
    for pool, limit in spec.pools.items():
        members = [role for role in spec.roles if (role.pool or role.name) == pool]
        # What nobody may change, and the minima: where they alone do not fit, nothing can.
        fixed = sum(
            role.scaling.replicas
            if isinstance(role.scaling, Static)
            else current[role.name]
            if isinstance(role.scaling, External) or "speed is not known" in _reason(decision, role.name)
            else max(role.scaling.minimum, 1)
            for role in members
        )
        if fixed <= limit and not decision.verdict.startswith("stands still"):
            assert sum(wanted[role.name] for role in members) <= limit


@SEARCH
@given(specs(), pictures(), st.integers(1, 3))
def test_a_pool_that_is_too_full_stops_nobody(spec: PipelineSpec, seen: Observed, room: int) -> None:
    """Whatever is held on a pool beyond its room, something is planned for wherever it would be without that limit."""
    held = RoleSpec(name="policy", pool="held", scaling=Static(room + 1), seconds_per_group=1.0)
    roles = (held, *(role for role in spec.roles if role.name != "policy"))
    free = replace(spec, roles=roles, pools={})
    without = decide(free, seen, 1000.0)
    full = decide(replace(free, pools={"held": room}), seen, 1000.0)
    if without.flow is not None:
        assert full.flow is not None
        assert (full.flow.planned > 0) == (without.flow.planned > 0)


def _reason(decision: Decision, name: str) -> str:
    return next(role.reason for role in decision.roles if role.role == name)


@SEARCH
@given(specs(), pictures(), st.booleans())
def test_no_replica_that_holds_a_group_is_removed(
    spec: PipelineSpec, seen: Observed, suspended: bool
) -> None:
    """A number falls by pods that are named and hold nothing, and by pods that are not there yet: by no other."""
    for name, orders in orders_of(replace(spec, suspended=suspended), seen).items():
        role = seen.roles[name]
        held = {replica.name: replica.held_groups for replica in role.replicas}
        for order in orders:
            if isinstance(order, Scale):
                assert [held[one] for one in order.remove] == [0] * len(order.remove)
                unborn = role.desired - len(role.replicas)
                assert role.desired - order.replicas <= len(order.remove) + unborn


@SEARCH
@given(specs(), pictures())
def test_what_is_done_is_what_was_wanted(spec: PipelineSpec, seen: Observed) -> None:
    """The orders lead to the number of the decision, whatever drains, starts or is being taken."""
    decision = decide(spec, seen, 1000.0)
    orders = orders_of(spec, seen)
    for role in decision.roles:
        observed = seen.roles[role.role]
        if observed.desired >= observed.count(*LEAVING):
            assert after(observed, orders[role.role]) == role.wanted


@SEARCH
@given(specs(st.just(Auto(1, 20))), pictures(lost=True), st.sampled_from(["roles", "learner", "old"]))
def test_without_metrics_nothing_moves(spec: PipelineSpec, seen: Observed, lost: str) -> None:
    """No scrape of the roles, none of the learner, or one that is too old: no order at all."""
    if lost == "learner":
        seen = replace(seen, learner=None)
    now = 1000.0 + (spec.stale_seconds + 1 if lost == "old" else 0)
    assert orders_of(spec, seen, now) == {name: [] for name in NAMES}


@SEARCH
@given(specs(suspended=True), pictures())
def test_suspended_every_role_goes_to_zero(spec: PipelineSpec, seen: Observed) -> None:
    """All but what is scaled from outside: the empty leave now, the busy drain, none stays."""
    orders = orders_of(spec, seen)
    for role in spec.roles:
        observed = seen.roles[role.name]
        if isinstance(role.scaling, External):
            assert orders[role.name] == []
            continue
        assert after(observed, orders[role.name]) <= 0 or observed.desired < observed.count(*LEAVING)
        drained = {order.replica for order in orders[role.name] if isinstance(order, Drain)}
        assert drained == {
            replica.name
            for replica in observed.replicas
            if replica.held_groups and replica.state not in LEAVING
        }


@SEARCH
@given(
    step=st.floats(20, 200),
    work=st.floats(5, 100),
    slots=st.integers(1, 8),
    faster=st.floats(1.3, 4),
    stock=st.floats(0, 400),
)
def test_a_step_in_load_is_ordered_in_one_decision(
    step: float, work: float, slots: int, faster: float, stock: float
) -> None:
    """Whatever the rates and however much is in stock: all of the new load but one replica at most, at once."""
    spec = PipelineSpec(
        roles=(RoleSpec(name="policy", scaling=Auto(1, 10_000), slots=slots),),
        batch_groups=64,
        max_staleness=8,
    )
    before = math.ceil(64 / step * work / slots)
    replicas = tuple(Replica(f"policy-{index}", ReplicaState.READY, slots) for index in range(before))
    seen = Observed(
        at=1000.0,
        roles={
            "policy": RoleObserved(
                desired=before,
                replicas=replicas,
                metrics=RoleMetrics(busy_seconds=work * 20, completed_groups=20, backlog_groups=0),
            )
        },
        learner=LearnerObserved(step_seconds=(step / faster,), trained_groups=64, ready_groups=int(stock)),
        memory=Memory(
            steps=(step,) * 5, roles={"policy": RoleMemory(blocks=((work * 20, 20),) * 8)}, stock=stock
        ),
    )
    decision = decide(spec, seen, 1000.0)
    assert decision.flow is not None
    assume(decision.flow.bound == "learner")
    load = 64 / (step / faster) * work / slots
    assert decision.roles[0].wanted >= max(1, math.floor(load - 1))
    assert decision.roles[0].wanted >= before - 1


@SEARCH
@given(
    old=st.floats(1, 200),
    factor=st.one_of(st.floats(0.2, 0.6), st.floats(1.7, 5)),
    wobbles=st.lists(st.floats(0.93, 1.07), min_size=4, max_size=4),
)
def test_the_rate_of_a_swapped_model_is_learned(old: float, factor: float, wobbles: list[float]) -> None:
    """Unannounced, after four blocks of 16 groups the estimate is the new rate to within a tenth."""
    memory = RoleMemory()
    for wobble in [1.04, 0.96] * 8:
        memory = learn_role(
            memory, RoleMetrics(busy_seconds=16 * old * wobble, completed_groups=16, backlog_groups=0)
        )
    for wobble in wobbles:
        memory = learn_role(
            memory,
            RoleMetrics(busy_seconds=16 * old * factor * wobble, completed_groups=16, backlog_groups=0),
        )
    estimate = work_estimate(memory, None)
    assert estimate is not None
    assert abs(estimate.mean / (old * factor) - 1) <= 0.1
