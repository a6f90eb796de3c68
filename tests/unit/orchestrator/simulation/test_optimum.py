"""The clairvoyant optimum: exact where it can be worked out by hand, and below every scaler."""

from dataclasses import replace

import pytest

from orchestrator.simulation.auto import AutoScaler
from orchestrator.simulation.contenders import Configuration
from orchestrator.simulation.engine import Result, Simulation
from orchestrator.simulation.optimum import clairvoyant
from orchestrator.simulation.scenario import Reclaim, RoleModel, Scenario
from orchestrator.simulation.shapes import SHAPES


def scenario(**more: object) -> Scenario:
    """1 group/s against 0.5 a replica, staleness 0: no stock to speak of."""
    settings: dict[str, object] = {
        "name": "plain",
        "seed": 1,
        "seconds": 4200.0,
        "warm_seconds": 600.0,
        "roles": (
            RoleModel(
                name="policy", slots=10, service_seconds=20, price=3, provision=(60, 60), load=(90, 90)
            ),
        ),
        "batch_groups": 10,
        "max_staleness": 0,
        "step_seconds": ((0.0, 10.0),),
        "length_sigma": 0.0,
    }
    return Scenario(**(settings | more))  # type: ignore[arg-type]


def trained(groups: int) -> Result:
    return Result("plain", "anyone", trained_groups=groups)


def test_a_constant_load_costs_its_replicas() -> None:
    """Two replicas at 3 for an hour."""
    assert clairvoyant(scenario(), trained(3600)).roles_cost == pytest.approx(6.0, rel=0.02)


def test_half_the_groups_cost_half() -> None:
    """Whoever trains half is compared with the optimum that trains half."""
    assert clairvoyant(scenario(), trained(1800)).roles_cost == pytest.approx(3.0, rel=0.03)


def test_a_fraction_of_a_replica_is_paid_whole() -> None:
    """1.1 groups/s need three replicas of 0.5 most of the time: two would leave a tenth untrained."""
    busy = scenario(step_seconds=((0.0, 10 / 1.1),))
    cost = clairvoyant(busy, trained(int(1.1 * 3600))).roles_cost
    assert 8.7 < cost <= 9.01


def test_a_reclaim_costs_a_start() -> None:
    """One of two replicas is taken: another 90 s of loading at 3."""
    taken = scenario(reclaims=(Reclaim(2000.0, "policy", 0.5, (0.9, 0.1)),))
    extra = clairvoyant(taken, trained(3600)).roles_cost - clairvoyant(scenario(), trained(3600)).roles_cost
    assert extra == pytest.approx(3 * 90 / 3600, rel=0.1)


@pytest.mark.parametrize("shape", ["steady", "bursts", "reclaims"])
def test_no_scaler_is_below_it(shape: str) -> None:
    """A lower bound."""
    one = SHAPES[shape](31, 6000.0)
    frugal = Configuration("hpa-cpu", "cpu", 0.95, 0.9)
    for scaler in (AutoScaler(one.spec()), AutoScaler(one.spec(minimum=30)), frugal.scaler(one)):
        result = Simulation(one, scaler).run()
        assert result.cost_per_thousand >= clairvoyant(one, result).cost_per_thousand


def test_more_stock_never_costs_more() -> None:
    """A wider staleness window only helps the optimum."""
    narrow = scenario(step_seconds=((0.0, 10.0), (1800.0, 5.0), (2400.0, 10.0)))
    wide = replace(narrow, max_staleness=20)
    groups = 3600 + 600
    assert clairvoyant(wide, trained(groups)).roles_cost <= clairvoyant(narrow, trained(groups)).roles_cost
