"""A scatter plot as SVG: points, a fitted line, axes with three ticks each. Knows nothing of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Place = Callable[[float], float]
WIDTH, HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 28, 44
_MOST_POINTS = 2000
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#555}.title{font-weight:600}.axis{stroke:#888}"
    ".point{fill:#2a78d6;fill-opacity:.45}.fit{stroke:#c2410c;stroke-width:2}</style>"
)


def scatter(xs: Sequence[float], ys: Sequence[float], *, title: str, x_label: str, y_label: str) -> str:
    """The drawing, whole. At most 2,000 points are drawn, evenly chosen; the line is fitted to all of them."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    left, right = _range(x)
    low, high = _range(y)

    def across(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int)).tolist()
    points = "".join(
        f'<circle class="point" cx="{across(x[i]):.1f}" cy="{up(y[i]):.1f}" r="2.5"/>' for i in shown
    )
    base, end = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{_STYLE}<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>'
        f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{base}H{end}"/>'
        + "".join(
            f'<text x="{across(tick):.1f}" y="{base + 16}" text-anchor="middle">{tick:.4g}</text>'
            for tick in np.linspace(left, right, 3).tolist()
        )
        + "".join(
            f'<text x="{_LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
            for tick in np.linspace(low, high, 3).tolist()
        )
        + f'<text x="{(_LEFT + end) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(14 {(_TOP + base) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>{points}{_fit(x, y, left, right, across, up)}</svg>\n"
    )


def _range(values: Floats) -> tuple[float, float]:
    """Lowest and highest, with room where they are the same."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _fit(x: Floats, y: Floats, left: float, right: float, across: Place, up: Place) -> str:
    """The least-squares line, where x varies."""
    if len(x) < 2 or float(x.std()) == 0.0:
        return ""
    slope, offset = np.polyfit(x, y, 1)
    one, other = (float(np.clip(slope * at + offset, y.min(), y.max())) for at in (left, right))
    ends = f'x1="{across(left):.1f}" y1="{up(one):.1f}" x2="{across(right):.1f}" y2="{up(other):.1f}"'
    return f'<line class="fit" {ends}/>'
