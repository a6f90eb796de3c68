"""The arithmetic of the pipeline, with numbers worked out by hand."""

import pytest

from orchestrator.planning.sizing import Flow, alternating, numbers, shared_rate, slack_of, staleness_rate
from orchestrator.planning.spec import PipelineSpec, RoleSpec


def spec(batch: int = 64, staleness: int = 6) -> PipelineSpec:
    return PipelineSpec(roles=(RoleSpec(name="policy"),), batch_groups=batch, max_staleness=staleness)


def test_window_by_littles_law() -> None:
    """448 groups less half a batch over 60 s of step and 100 s of stages: 2.6 groups/s; 160 s without staleness."""
    assert staleness_rate(spec(), 60, 100) == pytest.approx((448 - 32) / 160)
    assert staleness_rate(spec(staleness=0), 60, 100) == pytest.approx(64 / 160)


def test_slack_is_what_the_window_leaves() -> None:
    """448 - 1 * 160 - 32 = 256, and never below 0."""
    assert slack_of(spec(), 1.0, 60, 100) == pytest.approx(256)
    assert slack_of(spec(staleness=0), 1.0, 60, 100) == 0


def flow(stock: float, planned: float = 1.0, slack: float = 100.0) -> Flow:
    return Flow(
        learner=planned,
        staleness=9.0,
        planned=planned,
        bound="learner",
        latency_seconds=100,
        slack_groups=slack,
        stock_groups=stock,
    )


def test_at_the_reserve_the_load_is_rounded_up() -> None:
    """1 group/s at 0.15 a replica is a load of 6.67; with the reserve in stock, 70 of 100, just seven."""
    counts = numbers(flow(70), 0.15, 200)
    assert counts.load == pytest.approx(6.667, rel=1e-3)
    assert (counts.least, counts.enough) == (7, 7)


def test_stock_above_the_reserve_pays_for_a_part_of_a_replica() -> None:
    """100 groups above it: 100 / 400 s less is at most one replica off now, 100 / 1600 s lasts: 6.25 are 7."""
    counts = numbers(flow(170), 0.15, 200)
    assert (counts.least, counts.enough) == (6, 7)
    more = numbers(flow(170, planned=0.94), 0.15, 200)
    assert (more.least, more.enough) == (6, 6)


def test_stock_below_the_reserve_asks_for_more() -> None:
    """All 70 groups of the reserve gone: 70 / 600 s more are 0.78 replicas."""
    counts = numbers(flow(0), 0.15, 200)
    assert (counts.least, counts.enough) == (8, 8)


def test_stock_never_pays_for_more_than_one_replica() -> None:
    """However much is in stock, a load of 20 gets at least 19, and any load at least one."""
    assert numbers(flow(1000, planned=20.0, slack=1000), 1.0, 10).least == 19
    assert numbers(flow(1000, planned=0.3, slack=1000), 1.0, 10).least == 1
    assert numbers(flow(100, planned=0.0), 1.0, 10).enough == 0


def test_without_staleness_prices_decide() -> None:
    """sqrt(20 * 600 / (2 * 60)) = 10; a dearer replica is bought less, a dearer learner buys more."""
    assert alternating(600, price=2, others_price=20, rest_seconds=60, most=40) == 10
    assert alternating(600, price=8, others_price=20, rest_seconds=60, most=40) == 5
    assert alternating(600, price=2, others_price=80, rest_seconds=60, most=40) == 20
    assert alternating(600, price=2, others_price=80, rest_seconds=60, most=6) == 6


def test_a_shared_pool_bounds_the_rate_for_all() -> None:
    """Two roles of 2 and 1 replicas per group/s in a pool of 6 come to 2 groups/s."""
    import math

    counts = lambda rate: {"spot": math.ceil(2 * rate - 1e-9) + math.ceil(rate - 1e-9)}  # noqa: E731
    rate, pool = shared_rate(5.0, {"spot": 6}, counts)
    assert (round(rate, 6), pool) == (2.0, "spot")
    assert shared_rate(1.5, {"spot": 6}, counts) == (1.5, "")


def test_a_pool_that_is_too_full_does_not_bound_what_asks_nothing_of_it() -> None:
    """Three that are there at any rate in a room for two: no rate makes them fewer. With a fourth, it binds."""
    import math

    counts = lambda rate: {"spot": max(3, math.ceil(2 * rate - 1e-9))}  # noqa: E731
    assert shared_rate(1.5, {"spot": 2}, counts) == (1.5, "")
    rate, pool = shared_rate(5.0, {"spot": 2}, counts)
    assert (round(rate, 6), pool) == (1.5, "spot")
