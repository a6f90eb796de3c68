"""The planner's decisions: out at once, in after a hold and by drain, still where it is blind."""

from dataclasses import replace

import pytest

from orchestrator.planning.actions import Action, Drain, Remember, Scale, Undrain
from orchestrator.planning.observed import (
    LearnerObserved,
    Memory,
    Observed,
    Replica,
    ReplicaState,
    RoleMetrics,
    RoleObserved,
)
from orchestrator.planning.scaling import decide, plan
from orchestrator.planning.spec import Auto, External, PipelineSpec, RoleSpec, Scaling, Static
from services.common.errors import InvalidInput

STARTUP = 200.0
READY = ReplicaState.READY


def role(name: str = "policy", **more: object) -> RoleSpec:
    settings: dict[str, object] = {"slots": 4, "startup_seconds": STARTUP, "scaling": Auto(1, 40)}
    return RoleSpec(name=name, **(settings | more))  # type: ignore[arg-type]


def pipeline(*roles: RoleSpec, **more: object) -> PipelineSpec:
    settings: dict[str, object] = {"batch_groups": 60, "max_staleness": 6, "learner_price": 8.0}
    return PipelineSpec(roles=roles or (role(),), **(settings | more))  # type: ignore[arg-type]


def seen(
    count: int,
    *,
    work: float = 20.0,
    held: int = 4,
    desired: int | None = None,
    groups: int = 32,
    more: tuple[Replica, ...] = (),
) -> RoleObserved:
    replicas = tuple(
        Replica(f"policy-{index}", READY, held, age_seconds=1000 - index) for index in range(count)
    )
    return RoleObserved(
        desired=count + len(more) if desired is None else desired,
        replicas=(*replicas, *more),
        metrics=RoleMetrics(busy_seconds=work * groups, completed_groups=groups, backlog_groups=40),
    )


class Run:
    """A planner that is called every 15 s and remembers."""

    def __init__(self, spec: PipelineSpec, step: float = 60.0) -> None:
        self.spec, self.step, self.now, self.memory = spec, step, 0.0, Memory()

    def tick(self, **roles: RoleObserved) -> list[Action]:
        self.now += 15
        learner = LearnerObserved(step_seconds=(self.step,), trained_groups=60, ready_groups=240)
        observed = Observed(at=self.now, roles=roles, learner=learner, memory=self.memory)
        actions = plan(self.spec, observed, self.now)
        assert isinstance(actions[-1], Remember)
        self.memory = actions[-1].memory
        return actions[:-1]

    def settle(self, ticks: int = 12, **roles: RoleObserved) -> "Run":
        for _ in range(ticks):
            self.tick(**roles)
        return self


def test_what_fits_stays() -> None:
    """1 group/s of 20 s on 4 slots is a load of 5 replicas: with five of them nothing is ever done."""
    run = Run(pipeline())
    for _ in range(40):
        assert run.tick(policy=seen(5)) == []


def test_a_step_change_in_load_scales_out_in_one_decision() -> None:
    """The learner doubles its speed: at the very next decision all that is missing is ordered."""
    run = Run(pipeline()).settle(policy=seen(6))
    run.step = 30.0
    (action,) = run.tick(policy=seen(6))
    assert isinstance(action, Scale)
    assert action.replicas in (10, 11)


def test_what_is_coming_up_counts() -> None:
    """Ordered replicas that are still starting are not ordered again."""
    run = Run(pipeline()).settle(policy=seen(5))
    run.step = 30.0
    starting = tuple(Replica(f"new-{index}", ReplicaState.STARTING) for index in range(5))
    for _ in range(5):
        assert run.tick(policy=seen(5, more=starting)) == []


def test_fewer_are_believed_only_after_a_start_and_no_change_flaps() -> None:
    """Load that halves is answered after the hold, once; load that wavers around a number is not answered."""
    run = Run(pipeline()).settle(policy=seen(10, work=40.0))
    run.step = 120.0
    waited = 0
    while not (actions := run.tick(policy=seen(10, work=40.0))):
        waited += 1
    assert waited * 15 >= STARTUP / 2  # the stock is above its reserve
    assert all(isinstance(action, Drain) for action in actions)
    assert 4 <= len(actions) <= 5

    wavering = Run(pipeline()).settle(policy=seen(5))
    for index in range(40):
        work = 20.0 * (1.06 if index % 2 else 0.94)
        assert wavering.tick(policy=seen(5, work=work)) == []


def test_a_surplus_that_ends_in_between_starts_the_hold_anew() -> None:
    """Too many, then just right for a moment, then too many: the first spell does not count."""
    run = Run(pipeline()).settle(policy=seen(5))
    for _ in range(6):
        assert run.tick(policy=seen(10)) == []
    assert run.tick(policy=seen(5)) == []
    for _ in range(6):
        assert run.tick(policy=seen(10)) == []


def test_no_replica_that_holds_work_is_removed() -> None:
    """The busy are told to drain; only what is empty is taken off, by name, the starting and idle first."""
    run = Run(pipeline())
    busy, idle = Replica("busy", READY, 4), Replica("idle", READY, 0)
    starting = Replica("starting", ReplicaState.STARTING)
    surplus = seen(6, more=(busy, idle, starting))
    while not (actions := run.tick(policy=surplus)):
        pass
    (scale,) = [action for action in actions if isinstance(action, Scale)]
    drained = {action.replica for action in actions if isinstance(action, Drain)}
    assert set(scale.remove) == {"idle", "starting"}
    assert scale.replicas == 9 - 2
    held = {replica.name: replica.held_groups for replica in surplus.replicas}
    assert all(held[name] == 0 for name in scale.remove)
    assert all(held[name] > 0 for name in drained)


def test_a_drained_replica_leaves_once_it_is_empty() -> None:
    """While it holds a group the number stays; afterwards it falls by one, with its name."""
    run = Run(pipeline()).settle(policy=seen(5))
    draining = Replica("policy-9", ReplicaState.DRAINING, 2)
    assert run.tick(policy=seen(5, more=(draining,))) == []
    (scale,) = run.tick(policy=seen(5, more=(replace(draining, held_groups=0),)))
    assert scale == Scale("policy", 5, "drained", ("policy-9",))


def test_load_that_returns_takes_a_draining_replica_back() -> None:
    """A warm replica is worth more than a new one."""
    run = Run(pipeline()).settle(policy=seen(5))
    run.step = 30.0
    draining = Replica("policy-9", ReplicaState.DRAINING, 2)
    actions = run.tick(policy=seen(5, more=(draining,)))
    assert any(isinstance(action, Undrain) and action.replica == "policy-9" for action in actions)
    (scale,) = [action for action in actions if isinstance(action, Scale)]
    assert scale.replicas in (10, 11)


def test_a_reclaimed_node_is_replaced_at_once() -> None:
    """A replica whose node is about to go no longer counts: its successor is ordered on the notice."""
    run = Run(pipeline()).settle(policy=seen(6))
    notice = Replica("policy-9", ReplicaState.RECLAIMED, 4)
    (scale,) = run.tick(policy=seen(4, more=(notice,)))
    assert isinstance(scale, Scale)
    assert scale.replicas == 6  # five that stay and the one that goes


def test_suspended_goes_to_zero_by_drain() -> None:
    """Every role, static ones too, whatever its minimum: the busy drain, the idle leave."""
    spec = pipeline(role(), role("reward", scaling=Static(2)), suspended=True)
    actions = Run(spec).tick(policy=seen(2), reward=seen(2, held=0))
    assert [action.replica for action in actions if isinstance(action, Drain)] == ["policy-1", "policy-0"]
    assert [action for action in actions if isinstance(action, Scale)] == [
        Scale("reward", 0, "the run is suspended", ("policy-0", "policy-1"))
    ]


def test_lost_metrics_stand_still() -> None:
    """Without a role's metrics, without the learner's, or with old ones, nothing moves and the reason is told."""
    run = Run(pipeline()).settle(policy=seen(6))
    run.step = 20.0
    assert run.tick(policy=replace(seen(6), metrics=None)) == []
    blind = Observed(at=run.now, roles={"policy": seen(6)}, learner=None, memory=run.memory)
    decision = decide(run.spec, blind, run.now)
    assert "learner's metrics are lost" in decision.roles[0].reason
    assert len(decision.actions) == 1
    late = decide(run.spec, replace(blind, learner=LearnerObserved()), run.now + 500)
    assert "500 s old" in late.roles[0].reason
    assert late.memory.roles["policy"].blocks == run.memory.roles["policy"].blocks


def test_an_unknown_speed_gets_one_replica_to_learn_from() -> None:
    """Before anything was measured or told, the minimum runs."""
    nothing = RoleObserved(
        desired=0, metrics=RoleMetrics(busy_seconds=0, completed_groups=0, backlog_groups=100)
    )
    (scale,) = Run(pipeline()).tick(policy=nothing)
    assert scale == Scale("policy", 1, "its speed is not known yet")


def test_clamps_are_recorded_and_the_others_are_sized_for_the_bottleneck() -> None:
    """A policy that may have 3 replicas feeds 0.6 groups/s: the reward role is not sized for more."""
    spec = pipeline(role(scaling=Auto(1, 3)), role("reward"))
    run = Run(spec).settle(policy=seen(3), reward=seen(3))
    observed = Observed(
        at=run.now,
        roles={"policy": seen(3), "reward": seen(3)},
        learner=LearnerObserved(ready_groups=240),
        memory=run.memory,
    )
    decision = decide(spec, observed, run.now)
    assert decision.flow is not None
    assert decision.flow.planned == pytest.approx(0.6, rel=0.01)
    assert [part.wanted for part in decision.roles] == [3, 3]
    assert "policy has at most 3" in decision.roles[1].limits


def test_a_minimum_and_a_pool_limit_are_recorded() -> None:
    """min 8 where 5 would do; a pool with room for 2."""
    low = decide_after(pipeline(role(scaling=Auto(8, 40))), seen(8))
    assert low.roles[0].wanted == 8
    assert "min 8" in low.roles[0].limits
    pool = decide_after(pipeline(role(pool="spot"), pools={"spot": 2}), seen(2))
    assert pool.roles[0].wanted == 2
    assert any("pool spot has room for 2" in limit for limit in pool.roles[0].limits)


@pytest.mark.parametrize("scaling", [Static(3), Static(8), External(), Auto(3, 40)])
def test_a_pool_that_is_too_full_drains_nobody_elsewhere(scaling: Scaling) -> None:
    """Of three policies two have room: they do 0.4 groups/s, for which a role on another pool is counted."""
    count = scaling.replicas if isinstance(scaling, Static) else 3
    spec = pipeline(role(pool="spot", scaling=scaling), role("reward"), pools={"spot": 2})
    roles = {"policy": seen(2, desired=count), "reward": seen(2)}
    run = Run(spec).settle(40, **roles)
    learner = LearnerObserved(ready_groups=240)
    decision = decide(spec, Observed(at=run.now, roles=roles, learner=learner, memory=run.memory), run.now)
    assert decision.flow is not None
    assert decision.flow.planned == pytest.approx(0.4, rel=0.01)
    assert decision.flow.bound == "pool spot has room for 2"
    assert decision.roles[1].wanted in (2, 3)  # a load of 2, and the stock is a little below its reserve


def test_two_that_share_a_full_pool_have_one_each_at_least() -> None:
    """Whatever is held there beside it, a role is counted on for one: for none there would be no plan."""
    crowd = (role(pool="spot", scaling=Static(3)), role("reference", pool="spot", scaling=Static(4)))
    spec = pipeline(*crowd, role("reward"), pools={"spot": 2})
    roles = {"policy": seen(3), "reference": seen(4), "reward": seen(1)}
    run = Run(spec).settle(**roles)
    learner = LearnerObserved(ready_groups=240)
    decision = decide(spec, Observed(at=run.now, roles=roles, learner=learner, memory=run.memory), run.now)
    assert decision.flow is not None
    assert decision.flow.planned == pytest.approx(0.2, rel=0.01)


def test_no_replica_that_can_never_get_a_group_is_bought() -> None:
    """Without staleness no more groups than a batch are in flight: 6 in slots of 4 keep two replicas busy."""
    dear = pipeline(batch_groups=6, max_staleness=0, learner_price=1000.0)
    decision = decide_after(dear, seen(2, work=60.0))
    assert decision.roles[0].wanted == 2


def test_a_speed_too_quick_to_measure_is_planned_with() -> None:
    """32 groups in no time: one replica does it all, and nothing is divided by zero."""
    decision = decide_after(pipeline(), seen(2, work=0.0))
    assert decision.flow is not None
    assert decision.flow.bound == "learner"
    assert (decision.roles[0].least, decision.roles[0].enough) == (1, 1)


def decide_after(spec: PipelineSpec, policy: RoleObserved):  # type: ignore[no-untyped-def]
    run = Run(spec).settle(policy=policy)
    observed = Observed(
        at=run.now, roles={"policy": policy}, learner=LearnerObserved(ready_groups=240), memory=run.memory
    )
    return decide(spec, observed, run.now)


def test_static_is_held_and_external_is_left_alone() -> None:
    """Static writes its number, External never writes."""
    spec = pipeline(role(scaling=Static(4)), role("reward", scaling=External()))
    actions = Run(spec).tick(policy=seen(2), reward=seen(9))
    assert actions == [Scale("policy", 4, "held at 4")]


def test_a_slower_model_is_learned_and_scaled_for() -> None:
    """Twice the time per group, unannounced: within three scrapes the role has twice the replicas ordered."""
    run = Run(pipeline()).settle(20, policy=seen(5))
    orders = [action for _ in range(3) for action in run.tick(policy=seen(5, work=40.0))]
    assert orders
    assert isinstance(orders[-1], Scale)
    assert orders[-1].replicas >= 9


def test_the_staleness_window_bounds_what_is_bought() -> None:
    """Where the window lets less through than the learner could take, replicas beyond it would only wait."""
    tight = pipeline(max_staleness=0)
    decision = decide_after(tight, seen(6))
    assert decision.flow is not None
    assert decision.flow.bound == "staleness"
    assert decision.flow.planned == pytest.approx(60 / (60 + 20))


def test_the_same_picture_gives_the_same_plan_and_a_scrape_is_learned_once() -> None:
    """Level-triggered: asking twice changes nothing."""
    run = Run(pipeline()).settle(policy=seen(6))
    observed = Observed(
        at=run.now + 15,
        roles={"policy": seen(6)},
        learner=LearnerObserved(step_seconds=(60.0,), ready_groups=240),
        memory=run.memory,
    )
    first = decide(run.spec, observed, run.now + 15)
    again = decide(run.spec, replace(observed, memory=first.memory), run.now + 16)
    assert first.memory.roles["policy"].blocks == again.memory.roles["policy"].blocks
    assert decide(run.spec, observed, run.now + 15) == first


def test_bounds_that_cannot_hold_are_refused() -> None:
    """min over max is told by field."""
    with pytest.raises(InvalidInput, match=r"roles.policy.scaling: 0 <= min <= max"):
        pipeline(role(scaling=Auto(5, 3)))
