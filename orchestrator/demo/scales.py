"""Numbers to positions and numbers to words: linear scales, round ticks, tick labels. Knows no SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly onto [start, end]; start is the larger on a y axis that grows upwards."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where `value` stands, in the units of start and end."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def finite(values: Iterable[float]) -> list[float]:
    """The values that are numbers: neither NaN nor infinite."""
    return [value for value in values if math.isfinite(value)]


def round_step(span: float, intervals: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that needs at most `intervals` steps for `span`."""
    raw = span / intervals
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if factor * power >= raw * (1 - 1e-9):
            return factor * power
    return 10.0 * power


def ticks_around(low: float, high: float, intervals: int = 4) -> list[float]:
    """Round ticks that contain [low, high]; a single value gets room above and below."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.5 or 1.0
        low, high = low - room, high + room
    step = round_step(high - low, intervals)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def ticks_within(low: float, high: float, intervals: int = 5) -> list[float]:
    """Round whole-numbered ticks inside [low, high], for steps and other counts."""
    step = max(1.0, round_step(max(high - low, 1.0), intervals))
    step = float(math.ceil(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float, digits: int = 3) -> str:
    """A number for people: significant digits, a real minus sign, powers of ten for the very small."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        text = _short_exponent(f"{value:.{max(digits - 2, 0)}e}")
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{value:,.{decimals}f}".replace(",", NARROW_SPACE)
    return text.replace("-", MINUS)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with as many decimals as the step between ticks needs, the same for all."""
    if not ticks:
        return []
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    if step < 1e-3 or max(map(abs, ticks)) >= 1e5:
        labels = ["0" if tick == 0 else _short_exponent(f"{tick:.2g}") for tick in ticks]
    else:
        decimals = next(count for count in range(6) if abs(round(step, count) - step) < 1e-9)
        labels = [f"{tick + 0.0:.{decimals}f}" for tick in ticks]
    return [label.replace("-", MINUS) for label in labels]


def _short_exponent(text: str) -> str:
    """1.5e-05 as 1.5e-5."""
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
