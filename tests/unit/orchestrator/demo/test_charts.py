"""Scales, ticks, charts and marks: coordinates worked out by hand, text escaped."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from markupsafe import Markup

from orchestrator.demo import marks, scales
from orchestrator.demo.charts import MOST_HOVERS, Plot, Rule, Series, frame_of, line_chart, path_of
from orchestrator.demo.svg import element


def parsed(svg: Markup) -> ET.Element:
    """The picture as a tree: it must be well-formed XML on its own."""
    return ET.fromstring(str(svg))  # noqa: S314 - made by the module under test


def of_class(root: ET.Element, kind: str) -> list[ET.Element]:
    return [node for node in root.iter() if kind in node.get("class", "").split()]


def test_scale_maps_both_ends_and_the_middle() -> None:
    """A y axis that grows upwards maps low to the bottom, high to the top, linearly between."""
    scale = scales.Scale(10, 20, 200, 100)
    assert [scale(10), scale(15), scale(20)] == [200, 150, 100]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 13.0, [0, 5, 10, 15]),
        (-0.4, 2.7, [-1, 0, 1, 2, 3]),
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 2.0, [0, 0.5, 1.0, 1.5, 2.0]),
        (30.0, 30.0, [10, 20, 30, 40, 50]),  # a constant gets room: 15 to 45
        (0.0, 0.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 3e-5, [0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_ticks_are_round_and_contain_the_data(low: float, high: float, expected: list[float]) -> None:
    """Ticks are multiples of 1, 2, 2.5 or 5 times a power of ten, and reach over both ends."""
    assert scales.ticks_around(low, high) == pytest.approx(expected)


def test_step_ticks_are_whole_and_inside() -> None:
    """Steps are counted in whole numbers, and no tick stands where there is no data."""
    assert scales.ticks_within(1, 32) == [10, 20, 30]
    assert scales.ticks_within(1, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (0.87431, "0.874"),
        (11.42, "11.4"),
        (1060, "1\N{NARROW NO-BREAK SPACE}060"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (3e-5, "3.0e\N{MINUS SIGN}5"),
        (math.nan, "\N{EN DASH}"),
    ],
)
def test_numbers_for_people(value: float, told: str) -> None:
    """Three significant digits, a real minus sign, grouped thousands, powers of ten for the very small."""
    assert scales.number(value) == told


def test_tick_labels_have_equal_decimals() -> None:
    """Labels of one axis line up, and negative zero is zero."""
    assert scales.tick_labels([-0.5, -0.0, 0.5]) == ["\N{MINUS SIGN}0.5", "0.0", "0.5"]
    assert scales.tick_labels([0, 1e-5, 2e-5]) == ["0", "1e\N{MINUS SIGN}5", "2e\N{MINUS SIGN}5"]


PLOT = Plot("KL", [Series("KL", [(0, 0.0), (5, 10.0), (10, 5.0)])], "nats", width=360, height=210)


def test_curve_goes_through_the_right_places() -> None:
    """Known data in a known frame: y from 176 (0) up to 26 (10); x from the labels' margin to 350."""
    frame = frame_of(PLOT)
    assert frame is not None
    assert frame.y_ticks == pytest.approx([0, 2.5, 5, 7.5, 10])
    left = 13 + 6.4 * len("10.0")
    middle = (left + 350) / 2
    assert path_of(PLOT.series[0].points, frame) == f"M{left:.1f},176.0L{middle:.1f},26.0L350.0,101.0"
    root = parsed(line_chart(PLOT))
    assert root.get("viewBox") == "0 0 360 210"
    last = of_class(root, "dot")[0]
    assert (last.get("cx"), last.get("cy")) == ("350", "101")


def test_a_gap_lifts_the_pen() -> None:
    """NaN is drawn as a gap, never as 0, and does not stretch the axis."""
    plot = Plot("x", [Series("x", [(0, 1.0), (1, math.nan), (2, 3.0), (3, 2.0)])])
    frame = frame_of(plot)
    assert frame is not None
    assert (frame.y.low, frame.y.high) == (1, 3)
    path = path_of(plot.series[0].points, frame)
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_axes_say_their_units() -> None:
    """The y axis carries its unit, the x axis says what it counts, and every tick has its label."""
    texts = [node.text for node in parsed(line_chart(PLOT)).iter("text")]
    assert texts[:2] == ["nats", "step"]
    assert {"0.0", "2.5", "5.0", "7.5", "10.0", "2", "4", "6", "8", "10"} <= set(texts)


def test_pointing_at_a_step_tells_its_values() -> None:
    """Each step has a column with a tooltip; columns meet half-way and cover the whole plot."""
    series = [Series("score", [(1, 1.0), (2, 2.0), (4, 4.0)]), Series("reward", [(1, 0.5), (2, 1.0)], 1)]
    root = parsed(line_chart(Plot("Reward", series, "points")))
    titles = [node.text for node in root.iter("title")]
    assert titles == [
        "step 1: score 1.00, reward 0.500 points",
        "step 2: score 2.00, reward 1.00 points",
        "step 4: score 4.00 points",
    ]
    columns = [(float(node.get("x", "")), float(node.get("width", ""))) for node in root.iter("rect")]
    for (start, width), (following, _) in itertools.pairwise(columns):
        assert start + width == pytest.approx(following, abs=0.05)
    assert sum(columns[-1]) == pytest.approx(350, abs=0.05)


def test_long_runs_keep_the_page_small() -> None:
    """Ten thousand steps keep every point of the line, but share hover columns; the last step has its own."""
    plot = Plot("x", [Series("x", [(step, float(step)) for step in range(10_000)])])
    root = parsed(line_chart(plot))
    titles = [node.text or "" for node in root.iter("title")]
    assert len(titles) <= MOST_HOVERS + 1
    assert titles[-1].startswith("step 9999:")
    assert (of_class(root, "line")[0].get("d") or "").count("L") == 9_999


def test_a_rule_stands_at_its_value_and_widens_the_axis() -> None:
    """A rule outside the data is inside the axis, at its own height."""
    plot = Plot("x", [Series("x", [(0, 0.6), (1, 0.8)])], rules=[Rule(0.0, "nothing")], include=(1.0,))
    rule = of_class(parsed(line_chart(plot)), "rule")[0]
    assert (rule.get("y1"), rule.get("y2")) == ("176", "176")


def test_no_points_no_chart() -> None:
    """Without a finite value there is nothing to draw, and no error."""
    assert line_chart(Plot("x", [Series("x", [(1, math.nan)])])) == ""
    assert line_chart(Plot("x", [])) == ""


def test_one_point_is_a_dot_in_the_middle() -> None:
    """A run of one step is drawn in the middle of its axis."""
    root = parsed(line_chart(Plot("x", [Series("x", [(7, 3.0)])])))
    frame = frame_of(Plot("x", [Series("x", [(7, 3.0)])]))
    assert frame is not None
    assert float(of_class(root, "dot")[0].get("cx", "")) == pytest.approx((frame.x.start + 350) / 2, abs=0.01)


def test_interval_mark_places_its_ends() -> None:
    """On 0 to 1 in 220 units with 6 of margin: 0.25 stands at 58, 0.5 at 110, 1 at 214."""
    root = parsed(marks.interval_mark(0.25, 0.5, 1.0, within=(0, 1), rule=0.5))
    span = of_class(root, "span")[0]
    assert (span.get("x1"), span.get("x2")) == ("58", "214")
    assert of_class(root, "dot")[0].get("cx") == "110"
    assert of_class(root, "rule")[0].get("x1") == "110"


@pytest.mark.parametrize(("before", "after", "way"), [(-1, 1, "up"), (1, 0, "down"), (0, 0, "same")])
def test_shift_mark_says_which_way(before: float, after: float, way: str) -> None:
    """The hollow dot is before, the full one after, and the colour says whether it rose."""
    root = parsed(marks.shift_mark(before, after, within=(-1, 1)))
    assert way in (root.get("class") or "").split()
    assert float(of_class(root, "was")[0].get("cx", "")) == 60 + 54 * before
    assert float(of_class(root, "is")[0].get("cx", "")) == 60 + 54 * after


def test_proportion_bar_is_cut_in_proportion() -> None:
    """Values 1, 0 and 3 become a quarter, nothing and three quarters of 1000 units."""
    parts = [marks.Part("a", 1, "1 s", 0), marks.Part("b", 0, "0 s", 1), marks.Part("c", 3, "3 s", 2)]
    root = parsed(marks.proportion_bar(parts, title="time"))
    assert [(node.get("x"), node.get("width")) for node in root.iter("rect")] == [
        ("0", "250"),
        ("250", "750"),
    ]
    assert [node.text for node in root.iter("title")] == ["a: 1 s", "c: 3 s"]
    assert marks.proportion_bar([marks.Part("a", 0, "0 s")], title="time") == ""


def test_text_and_attributes_are_escaped() -> None:
    """Neither content nor attribute can break out of its element."""
    assert str(element("text", "<b>&", aria_label='"><script>')) == (
        '<text aria-label="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</text>'
    )
    svg = line_chart(Plot("<script>", [Series("</svg>", [(0, 1.0)]), Series("b", [(0, 2.0)])], '"><'))
    assert "<script>" not in svg
    parsed(svg)
