"""Coordinates of the overview's plots."""

from __future__ import annotations

from services.preference.ratings import Rating
from services.preference.web.plots import by_version, hour_plot, nice_ticks, rating_plot


def test_ticks_are_round_and_enclose_the_data() -> None:
    """Steps are 1, 2 or 5 times a power of ten, the first and last at or beyond the ends, also without a span."""
    assert nice_ticks(883, 1130) == [850, 900, 950, 1000, 1050, 1100, 1150]
    assert nice_ticks(0, 3) == [0, 1, 2, 3]
    assert nice_ticks(0, 0.9) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    low, *_, high = nice_ticks(1000, 1000)
    assert low < high


def test_versions_are_in_the_order_of_their_numbers() -> None:
    """policy@9 comes before policy@10."""
    names = ["policy@10", "policy@9", "base", "policy@100"]
    ratings = [Rating(name, 1000, 990, 1010, 1) for name in names]
    assert [one.subject for one in by_version(ratings)] == ["base", "policy@9", "policy@10", "policy@100"]


def test_a_rating_lies_within_its_interval_and_the_plot() -> None:
    """low, rating and high keep their order and proportion; there is no plot of nothing."""
    assert rating_plot([]) is None
    plot = rating_plot([Rating("a", 1000, 950, 1100, 3), Rating("b", 900, 900, 900, 1)])
    assert plot is not None
    first, second = plot.marks
    assert plot.left <= second.x < first.low < first.x < first.high <= plot.width
    assert abs((first.x - first.low) / (first.high - first.low) - 1 / 3) < 0.01
    assert first.y < second.y < plot.height


def test_the_newest_hour_is_the_last_bar() -> None:
    """48 bars, each as high as its count; hours before them are left out."""
    now = 3600.0 * 1000 + 5
    plot = hour_plot({1000: 10, 999: 5, 900: 99}, now)
    assert len(plot.bars) == 48
    last, before = plot.bars[-1], plot.bars[-2]
    assert last.height == 2 * before.height > 0
    assert sum(bar.height for bar in plot.bars[:-2]) == 0
    assert last.text.endswith(": 10")
