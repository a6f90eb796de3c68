"""The simulator: repeatable, loses no group, bills what it should."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from orchestrator.planning.actions import Drain, Scale
from orchestrator.simulation.engine import Order, Simulation, View
from orchestrator.simulation.scenario import Reclaim, RoleModel, Scenario, mean_over, value_at
from orchestrator.simulation.shapes import SHAPES, day


class Scripted:
    """Obeys a script of (tick number, order)."""

    name = "scripted"

    def __init__(self, *script: tuple[int, Order]) -> None:
        self._script, self._tick = script, 0

    def decide(self, view: View, now: float) -> Sequence[Order]:
        self._tick += 1
        return [order for tick, order in self._script if tick == self._tick]


def plain(**more: object) -> Scenario:
    """One role, fixed lengths, no chance: 4 slots of 20 s a replica are 0.2 groups/s."""
    settings: dict[str, object] = {
        "name": "plain",
        "seed": 1,
        "seconds": 3600.0,
        "warm_seconds": 600.0,
        "roles": (
            RoleModel(name="policy", slots=4, service_seconds=20, price=2, provision=(60, 60), load=(90, 90)),
        ),
        "batch_groups": 10,
        "max_staleness": 3,
        "step_seconds": ((0.0, 10.0),),
        "step_noise": 0.0,
        "length_sigma": 0.0,
        "slow_share": 0.0,
        "initial": {"policy": 3},
    }
    return Scenario(**(settings | more))  # type: ignore[arg-type]


def test_throughput_and_idle_share_are_those_of_the_bottleneck() -> None:
    """0.6 groups/s against an appetite of 1: 6 of 10 seconds are trained, the rest waited."""
    result = Simulation(plain(), Scripted()).run()
    assert result.trained_groups == pytest.approx(0.6 * 3000, rel=0.02)
    assert result.idle_share == pytest.approx(0.4, abs=0.02)


def test_cost_counts_replicas_by_price_after_the_warm_up() -> None:
    """Three replicas at 2 for 3,000 s are 5 price-hours."""
    result = Simulation(plain(), Scripted()).run()
    assert result.roles_cost == pytest.approx(3 * 2 * 3000 / 3600)
    assert result.cost_per_thousand == pytest.approx(1000 * result.roles_cost / result.trained_groups)


def test_a_start_takes_its_lag_and_is_billed_from_the_node_on() -> None:
    """Ordered at 900 s: node at 960 s, where billing begins, serving at 1050 s."""
    simulation = Simulation(plain(), Scripted((60, Scale("policy", 4, ""))), series=True)
    result = simulation.run()
    ready = dict(zip(result.times, result.ready["policy"], strict=True))
    assert (ready[1035.0], ready[1065.0]) == (3, 4)
    assert result.roles_cost == pytest.approx(2 * (3 * 3000 + (3600 - 960)) / 3600)


def test_a_drained_replica_hands_back_and_nothing_is_lost() -> None:
    """Groups admitted are trained, waiting, worked on, or in training: their sum is the window, always."""
    scenario = replace(
        plain(length_sigma=0.8),
        reclaims=(Reclaim(1500.0, "policy", 0.5, (0.1, 0.9, 0.2)),),
    )
    simulation = Simulation(
        scenario, Scripted((50, Drain("policy", "policy-1", "")), (90, Scale("policy", 1, "")))
    )
    simulation.run()
    stage = simulation._stages[0]
    window = 4 * 10
    training = 10 if simulation._training else 0
    assert len(stage.queue) + stage.working + len(simulation._ready) + training == window


def test_a_reclaimed_replica_is_replaced_by_the_replica_set() -> None:
    """At the moment of the reclaim another is ordered; it serves after its start-up."""
    scenario = plain(reclaims=(Reclaim(1200.0, "policy", 0.5, (0.1, 0.9, 0.9)),))
    result = Simulation(scenario, Scripted(), series=True).run()
    ready = dict(zip(result.times, result.ready["policy"], strict=True))
    assert (ready[1185.0], ready[1215.0], ready[1365.0]) == (3, 2, 3)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    """Nothing but the seed decides."""
    one, again, other = (Simulation(SHAPES["bursts"](seed, 4000.0), Scripted()).run() for seed in (3, 3, 4))
    assert (one.trained_groups, one.roles_cost, one.waited_seconds) == (
        again.trained_groups,
        again.roles_cost,
        again.waited_seconds,
    )
    assert one.waited_seconds != other.waited_seconds


def test_lengths_have_mean_one_and_a_bound() -> None:
    """A scenario's load is what its mean service says, whatever the tail."""
    lengths = SHAPES["long_tail"](5, 10800.0).lengths()
    assert sum(lengths) / len(lengths) == pytest.approx(1.0, abs=0.01)
    assert max(lengths) <= 3.0 + 1e-9


def test_timelines() -> None:
    """A value holds from its moment on; means are weighted by time."""
    timeline = ((0.0, 1.0), (10.0, 3.0))
    assert [value_at(timeline, at) for at in (0.0, 9.9, 10.0, 50.0)] == [1.0, 1.0, 3.0, 3.0]
    assert mean_over(timeline, 5.0, 15.0) == pytest.approx(2.0)


def test_a_day_has_a_wave_and_bursts() -> None:
    """The demand of a day varies by more than twice."""
    scenario = day(1, 24 * 3600.0)
    demand = [scenario.demand(at) for at in range(0, 86400, 600)]
    assert max(demand) / min(demand) > 2
