"""Owns where things stand in the overview's plots: numbers in, coordinates out. Pure; templates draw them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.preference.ratings import Rating

WIDTH = 560  # of the rating plot, half a page
_LABELS = 130  # room for names, left of the plot
_ROW = 34
_MARGIN = 16
_HOURS = 48
_BARS_WIDTH, _BARS_HEIGHT = 1130, 170
_STEP = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line at `at`, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class RatingMark:
    """One row of the rating plot: name at `y`, interval from `low` to `high`, estimate at `x`."""

    name: str
    text: str
    y: float
    low: float
    x: float
    high: float


@dataclass(frozen=True, slots=True)
class RatingPlot:
    """Ratings as points with intervals, a row each."""

    marks: Sequence[RatingMark]
    ticks: Sequence[Tick]
    left: float
    height: float
    width: float = WIDTH


@dataclass(frozen=True, slots=True)
class Bar:
    """Labels of one hour."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class HourPlot:
    """Labels per hour, as bars."""

    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    hours: Sequence[Tick]
    height: float = _BARS_HEIGHT
    width: float = _BARS_WIDTH


def by_version(ratings: Sequence[Rating]) -> list[Rating]:
    """Sources in the order of their versions: numbers in a name count as numbers."""
    return sorted(ratings, key=lambda rating: natural(rating.subject))


def natural(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A key that puts policy@9 before policy@10."""
    return tuple(_STEP.split(name)), tuple(int(number) for number in _STEP.findall(name))


def rating_plot(ratings: Sequence[Rating]) -> RatingPlot | None:
    """A row for each rating, in the order given; None without any."""
    if not ratings:
        return None
    ticks = nice_ticks(min(one.low for one in ratings), max(one.high for one in ratings))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(_LABELS + (value - low) / (high - low) * (WIDTH - _LABELS - 2 * _MARGIN), 1)

    marks = [
        RatingMark(
            one.subject,
            f"{one.subject}: {one.rating:.0f}, between {one.low:.0f} and {one.high:.0f}, {one.comparisons} comparisons",
            (number + 0.7) * _ROW,
            x(one.low),
            x(one.rating),
            x(one.high),
        )
        for number, one in enumerate(ratings)
    ]
    height = (len(ratings) + 0.5) * _ROW + 24
    return RatingPlot(marks, [Tick(x(tick), f"{tick:g}") for tick in ticks], _LABELS, height)


def hour_plot(by_hour: Mapping[int, int], now: float) -> HourPlot:
    """Bars of the last 48 hours, this one last (UTC)."""
    last = int(now // 3600)
    counts = [by_hour.get(last - back, 0) for back in range(_HOURS - 1, -1, -1)]
    ticks = nice_ticks(0, max(*counts, 1))
    base, left = _BARS_HEIGHT - 24, 44
    step = (_BARS_WIDTH - left - _MARGIN) / _HOURS

    def y(count: float) -> float:
        return round(base - count / ticks[-1] * (base - 12), 1)

    bars = [
        Bar(
            round(left + number * step + 1, 1),
            y(count),
            round(step - 2, 1),
            round(base - y(count), 1),
            f"{_hour(last - _HOURS + 1 + number)}: {count}",
        )
        for number, count in enumerate(counts)
    ]
    hours = [
        Tick(round(left + (number + 0.5) * step, 1), f"{_hour(last - _HOURS + 1 + number)[-5:]}")
        for number in range(5, _HOURS, 6)
    ]
    whole = [tick for tick in ticks if tick == int(tick)]
    return HourPlot(bars, [Tick(y(tick), f"{tick:g}") for tick in whole], hours)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about so many."""
    span = max(high - low, 1e-9)
    size = 10 ** math.floor(math.log10(span / about))
    step = next(factor * size for factor in (1, 2, 5, 10) if span / (factor * size) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _hour(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour * 3600, UTC):%Y-%m-%d %H:%M}"
