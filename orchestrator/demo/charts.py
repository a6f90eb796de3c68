"""Curves over steps as strings of self-contained SVG. Knows no run and no file.

Colours come from the page by class (`tone-0` …), so that light and dark need no second drawing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from orchestrator.demo.scales import Scale, finite, number, tick_labels, ticks_around, ticks_within
from orchestrator.demo.svg import dot, drawing, element, line, text

MOST_HOVERS = 100
"""More steps than this share hover columns: the page stays small and the line keeps every point."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve: a label and points (x, y). A y that is not finite leaves a gap."""

    label: str
    points: Sequence[Point]
    tone: int = 0


@dataclass(frozen=True)
class Rule:
    """A dashed horizontal line that says something, such as chance or a target."""

    value: float
    label: str
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Plot:
    """A chart of curves over steps. `unit` stands above the y axis, which also reaches `include`."""

    title: str
    series: Sequence[Series]
    unit: str = ""
    x_label: str = "step"
    rules: Sequence[Rule] = ()
    include: Sequence[float] = ()
    width: int = 360
    height: int = 210
    counted: bool = True
    """Whether x counts something, as steps do: ticks and tooltips are then whole numbers."""


@dataclass(frozen=True)
class Frame:
    """The rectangle inside the axes: two scales (x grows rightwards, y upwards) and their ticks."""

    x: Scale
    y: Scale
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def place(self, point: Point) -> Point:
        """A point of the data in the picture's units."""
        return self.x(point[0]), self.y(point[1])


def frame_of(plot: Plot) -> Frame | None:
    """The axes that hold every finite point of `plot`; None when it has none."""
    points = [point for series in plot.series for point in series.points if math.isfinite(point[1])]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += [rule.value for rule in plot.rules] + list(plot.include)
    y_ticks = ticks_around(min(ys), max(ys))
    low, high = min(xs), max(xs)
    if high == low:
        low, high = low - 1, high + 1
    left = 13 + 6.4 * max(map(len, tick_labels(y_ticks)))
    return Frame(
        x=Scale(low, high, left, plot.width - 10),
        y=Scale(y_ticks[0], y_ticks[-1], plot.height - 34, 26),
        x_ticks=ticks_within(low, high) if plot.counted else _inner_ticks(low, high),
        y_ticks=y_ticks,
    )


def _inner_ticks(low: float, high: float) -> list[float]:
    """Round ticks inside [low, high] of what is measured, not counted."""
    return [tick for tick in ticks_around(low, high) if low <= tick <= high]


def path_of(points: Sequence[Point], frame: Frame) -> str:
    """The `d` of a line through `points`, lifted over the gaps."""
    parts: list[str] = []
    pen = "M"
    for point in points:
        if math.isfinite(point[1]):
            x, y = frame.place(point)
            parts.append(f"{pen}{x:.1f},{y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def line_chart(plot: Plot) -> Markup:
    """The chart of `plot`: axes with units, curves, a dot on the last point, values under the pointer.

    Empty when there is no finite point.
    """
    frame = frame_of(plot)
    if frame is None:
        return Markup("")
    layers = (_axes(plot, frame), _rules(plot, frame), _curves(plot, frame), _hovers(plot, frame))
    return drawing("chart", plot.width, plot.height, _spoken(plot), *layers)


def _spoken(plot: Plot) -> str:
    parts = []
    for series in plot.series:
        values = finite(y for _, y in series.points)
        if values:
            change = f"{number(values[0])} to {number(values[-1])}"
            parts.append(f"{series.label} from {change} {plot.unit}".rstrip())
    return f"{plot.title} by {plot.x_label}: {'; '.join(parts)}"


def _axes(plot: Plot, frame: Frame) -> Markup:
    left, right, bottom = frame.x.start, frame.x.end, frame.y.start
    drawn = [text(plot.unit, 0, 12, "unit"), text(plot.x_label, right, plot.height - 3, "unit end")]
    for tick, label in zip(frame.y_ticks, tick_labels(frame.y_ticks), strict=True):
        y = frame.y(tick)
        drawn += [line("grid", left, y, right, y), text(label, left - 7, y + 4, "tick end")]
    labels = [f"{tick:.0f}" for tick in frame.x_ticks] if plot.counted else tick_labels(frame.x_ticks)
    drawn += [
        text(label, frame.x(tick), bottom + 16, "tick middle")
        for tick, label in zip(frame.x_ticks, labels, strict=True)
    ]
    return Markup("").join(drawn)


def _rules(plot: Plot, frame: Frame) -> Markup:
    left, right = frame.x.start, frame.x.end
    drawn = []
    for rule in plot.rules:
        y = frame.y(rule.value)
        where, kind = (left + 4, "unit") if rule.side == "left" else (right, "unit end")
        drawn += [line("rule", left, y, right, y), text(rule.label, where, y - 5, kind)]
    return Markup("").join(drawn)


def _curves(plot: Plot, frame: Frame) -> Markup:
    drawn = []
    for series in plot.series:
        drawn.append(element("path", class_=f"line tone-{series.tone}", d=path_of(series.points, frame)))
        seen = [point for point in series.points if math.isfinite(point[1])]
        if seen:
            drawn.append(dot(f"dot tone-{series.tone}", *frame.place(seen[-1]), 3.2))
    return Markup("").join(drawn)


def _hovers(plot: Plot, frame: Frame) -> Markup:
    """Invisible columns, one a step, with the values there as a tooltip and, under the pointer, as text."""
    values: dict[float, list[tuple[Series, float]]] = {}
    for series in plot.series:
        for x, y in series.points:
            if math.isfinite(y):
                values.setdefault(x, []).append((series, y))
    steps = sorted(values)
    steps = sorted({*steps[:: math.ceil(len(steps) / MOST_HOVERS)], steps[-1]})
    middles = [frame.x((a + b) / 2) for a, b in itertools.pairwise(steps)]
    edges = [frame.x.start, *middles, frame.x.end]
    return Markup("").join(
        _hover(plot, frame, x, values[x], span)
        for x, span in zip(steps, itertools.pairwise(edges), strict=True)
    )


def _hover(
    plot: Plot, frame: Frame, x: float, values: Sequence[tuple[Series, float]], span: tuple[float, float]
) -> Markup:
    top, bottom, start, end = frame.y.end, frame.y.start, *span
    several = len(plot.series) > 1
    told = ", ".join((f"{series.label} " if several else "") + number(y) for series, y in values)
    where = f"{plot.x_label} {f'{x:.0f}' if plot.counted else number(x)}"
    words = f"{where}: {told} {plot.unit}".rstrip()
    brief = f"{where}: {', '.join(number(y) for _, y in values)}"
    dots = [dot(f"dot tone-{series.tone}", *frame.place((x, y)), 4) for series, y in values]
    upright = line("upright", frame.x(x), top, frame.x(x), bottom)
    column = element("rect", x=start, y=top, width=end - start, height=bottom - top)
    mark = element("g", upright, *dots, text(brief, frame.x.end, 12, "end"), class_="mark")
    return element("g", element("title", words), column, mark, class_="hover")
