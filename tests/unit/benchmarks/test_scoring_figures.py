"""The arithmetic of benchmarks.scoring, with numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from benchmarks.scoring_figures import (
    Disagreement,
    Pass,
    check_agreement,
    complaints,
    headline,
    known,
    poisson_arrivals,
    quantile,
    rate,
    rates,
    ratio,
    worse,
)


def passes_of(way: str, pattern: str, *speeds: float) -> list[Pass]:
    return [
        Pass(way=way, pattern=pattern, round=number, tokens_per_second=speed)
        for number, speed in enumerate(speeds)
    ]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """A round in which the whole machine is slow changes both sides of its ratio, and so no figure."""
    passes = passes_of("grpc", "64x1", 2000, 1000, 1500) + passes_of("mosec_best", "64x1", 1000, 500, 1000)
    assert ratio(passes, "grpc", "mosec_best", "64x1") == 2.0
    # The ratio of medians would have been 1.5.
    assert rate(passes, "grpc", "64x1") == 1500


def test_the_limit_stands_for_both_patterns() -> None:
    """The limit has no clients: every pattern is compared with its one pass of the round."""
    passes = passes_of("limit", "", 2000, 1000) + passes_of("grpc", "8x32", 1900, 990)
    assert ratio(passes, "grpc", "limit", "8x32") == pytest.approx((0.95 + 0.99) / 2)


def test_only_rounds_with_both_sides_count() -> None:
    """A round that one side did not run gives no ratio."""
    passes = passes_of("limit", "", 1000) + passes_of("grpc", "64x1", 900, 5000)
    assert ratio(passes, "grpc", "limit", "64x1") == 0.9


def test_the_headline_is_the_worse_pattern() -> None:
    """Both patterns are reported, and the figure without a pattern's name is the worse of them."""
    passes = passes_of("limit", "", 1000) + passes_of("grpc", "64x1", 960) + passes_of("grpc", "8x32", 990)
    assert headline(passes, "grpc_vs_limit", "grpc", "limit") == {
        "grpc_vs_limit": 0.96,
        "grpc_vs_limit_64x1": 0.96,
        "grpc_vs_limit_8x32": 0.99,
    }
    assert rates(passes, "grpc")["grpc_tokens_per_second"] == 960


def test_half_a_measurement_makes_no_headline() -> None:
    """Where one pattern was not measured, the figure is left out, not taken from the other."""
    passes = passes_of("limit", "", 1000) + passes_of("grpc", "64x1", 960)
    assert headline(passes, "grpc_vs_limit", "grpc", "limit") == {"grpc_vs_limit_64x1": 0.96}
    assert headline(passes, "vs_mosec_best", "grpc", "mosec_best") == {}
    assert math.isnan(worse([1.0, math.nan]))
    assert math.isnan(worse([]))
    assert known({"a": 1.0, "b": math.nan}) == {"a": 1.0}


EXACT = [float(number) for number in range(-8, 9)]
SPREAD = math.sqrt(24.0)


def rounded(share: float) -> list[float]:
    """Scores that are off by a share of their spread, up and down."""
    return [score + share * SPREAD * (-1) ** at for at, score in enumerate(EXACT)]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.074])
def test_rounding_agrees(share: float) -> None:
    """Half as much again as the limit's own distance from float32 is what another order of sums may leave."""
    assert check_agreement("peer", EXACT, rounded(share), rounded(0.05)) == pytest.approx(share)


def test_more_than_rounding_does_not_agree() -> None:
    """A way that is less exact than the limit buys its speed with that."""
    with pytest.raises(Disagreement, match=r"1\.5 times the limit's"):
        check_agreement("peer", EXACT, rounded(0.076), rounded(0.05))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: scores[::-1],
        lambda scores: [0.0] * len(scores),
        lambda scores: [scores[1], scores[0], *scores[2:-1], scores[0]],
        lambda scores: [score + 0.6 for score in scores],
        lambda scores: [math.nan, *scores[1:]],
        lambda scores: scores[:-1],
    ],
)
def test_other_scores_are_no_answer(spoil: object) -> None:
    """Another order, a constant, one text's score in another's place, a shift, NaN, a missing one: all are told."""
    with pytest.raises(Disagreement):
        check_agreement("peer", EXACT, spoil(EXACT), rounded(0.05))  # type: ignore[operator]


def test_equal_expectations_compare_nothing() -> None:
    """A model that scores all texts alike would agree with any constant."""
    with pytest.raises(Disagreement, match="alike"):
        check_agreement("peer", [1.0, 1.0], [1.0, 1.0], [1.0, 1.0])


def test_quantiles_are_values_that_were_seen() -> None:
    """p50 of 1..100 is 50, p99 is 99; of a single value every quantile is that value."""
    values = [float(number) for number in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50
    assert quantile(values, 0.99) == 99
    assert quantile([7.0], 0.99) == 7
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    """The same seed gives the same times; they rise, stay within the time, and come as often as asked."""
    arrivals = poisson_arrivals(50.0, 200.0, seed=3)
    assert arrivals == poisson_arrivals(50.0, 200.0, seed=3)
    assert arrivals != poisson_arrivals(50.0, 200.0, seed=4)
    assert list(arrivals) == sorted(arrivals)
    assert arrivals[0] > 0 and arrivals[-1] < 200.0
    # 10,000 expected; the deviation of a Poisson count is its root, 100.
    assert abs(len(arrivals) - 10_000) < 400
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_slow_server_is_called_once() -> None:
    """Where less than one call is due within the time, there is still one."""
    assert len(poisson_arrivals(1e-3, 1.0, seed=0)) == 1


def test_a_limit_below_the_floor_is_a_broken_comparison() -> None:
    """Below 1,500 tokens/s the run says that it compares nothing; at the floor it does not."""
    [complaint] = complaints(1499.0, [])
    assert "BROKEN COMPARISON" in complaint and "1,499" in complaint
    assert complaints(1500.0, []) == []
    assert complaints(math.nan, []) != []
    assert complaints(2000.0, ["mosec"]) == ["mosec was not measured"]
