"""The planner in the simulator: no flapping, prompt orders, still when blind, drains first; held-out seeds."""

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator.planning.actions import Drain, Scale
from orchestrator.simulation.auto import AutoScaler
from orchestrator.simulation.engine import Order, Simulation, View
from orchestrator.simulation.scenario import value_at
from orchestrator.simulation.shapes import SHAPES


class Recording(AutoScaler):
    """Keeps every order with its moment and checks that nothing with work is removed."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.orders: list[tuple[float, Order]] = []

    def decide(self, view: View, now: float) -> list[Order]:
        orders = list(super().decide(view, now))
        for order in orders:
            self.orders.append((now, order))
            if isinstance(order, Scale):
                pods = {pod.name: pod for pod in view.pools[order.role].replicas}
                assert all(not pods[name].held for name in order.remove)
                assert order.replicas >= view.pools[order.role].desired or order.remove
        return orders


@pytest.mark.parametrize("seed", [101, 102])
def test_steady_load_is_left_alone(seed: int) -> None:
    """No flapping: in two and a half hours of a steady load with reclaims no role grows more than five times."""
    scenario = SHAPES["steady"](seed, 10800.0)
    auto = Recording(scenario.spec())
    result = Simulation(scenario, auto).run()
    late = [order for at, order in auto.orders if at > 1800 and isinstance(order, Scale)]
    for role in scenario.roles:
        assert sum(order.role == role.name and not order.remove for order in late) <= 5
    assert result.idle_share < 0.06


def test_a_step_in_load_is_ordered_at_the_first_decision_that_can_see_it() -> None:
    """One step of the learner at its new speed, one scrape, one decision."""
    scenario = SHAPES["step"](103, 10800.0)
    scenario = replace(scenario, reclaims=())
    auto = Recording(scenario.spec())
    Simulation(scenario, auto).run()
    moment = scenario.step_seconds[1][0]
    slow, fast = scenario.step_seconds[0][1], scenario.step_seconds[1][1]
    seen_by = moment + slow * 1.2 + fast * 1.2 + 2 * scenario.tick_seconds
    first = next(at for at, order in auto.orders if at > moment and isinstance(order, Scale))
    assert first <= seen_by
    ordered = [o for at, o in auto.orders if at == first and isinstance(o, Scale) and o.role == "policy"]
    needed = scenario.needed(scenario.roles[0], moment + 1)
    assert ordered[0].replicas >= needed * 0.85


def test_lost_metrics_freeze_the_numbers() -> None:
    """Half an hour without a scrape: no order in it, and the run goes on."""
    scenario = replace(SHAPES["bursts"](104, 10800.0), blackouts=((4000.0, 5800.0),))
    auto = Recording(scenario.spec())
    result = Simulation(scenario, auto).run()
    assert [at for at, _ in auto.orders if 4030.0 < at < 5800.0] == []
    assert result.trained_groups > 0


def test_scale_in_is_by_drain() -> None:
    """After the load has fallen, replicas drain before they go."""
    scenario = SHAPES["step"](105, 10800.0)
    auto = Recording(scenario.spec())
    Simulation(scenario, auto).run()
    fall = scenario.step_seconds[2][0]
    drained = [order for at, order in auto.orders if at > fall and isinstance(order, Drain)]
    assert len(drained) >= 3
    assert value_at(scenario.step_seconds, fall - 1) < value_at(scenario.step_seconds, fall + 1)


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), staleness=st.integers(2, 8), noise=st.floats(0, 0.08))
def test_no_steady_load_makes_a_role_flap(seed: int, staleness: int, noise: float) -> None:
    """Nothing reclaimed, nothing changed: after half an hour a role's number grows at most five times an hour."""
    scenario = replace(SHAPES["steady"](seed, 7200.0), reclaims=(), max_staleness=staleness, step_noise=noise)
    auto = Recording(scenario.spec())
    Simulation(scenario, auto).run()
    late = [order for at, order in auto.orders if at > 1800 and isinstance(order, Scale) and not order.remove]
    for role in scenario.roles:
        assert sum(order.role == role.name for order in late) <= 5 * (7200 - 1800) / 3600
