"""Small marks beside numbers: intervals, shifts, bars of shares, as SVG. Knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.demo.scales import Scale, number
from orchestrator.demo.svg import dot, drawing, element, line


@dataclass(frozen=True)
class Part:
    """One share of a whole; `told` is its size in words."""

    label: str
    value: float
    told: str
    tone: int = 0


def interval_mark(
    low: float,
    value: float,
    high: float,
    *,
    within: tuple[float, float],
    tone: int = 0,
    rule: float | None = None,
    width: int = 220,
) -> Markup:
    """A dot with its interval on the line `within`, 20 units high; `rule` is a small upright on that line."""
    scale = Scale(*within, 6.0, width - 6.0)
    words = f"{number(value)} ({number(low)} to {number(high)})"
    upright = [] if rule is None else [line("rule", scale(rule), 2, scale(rule), 18)]
    return drawing(
        "interval",
        width,
        20,
        words,
        element("title", words),
        line("grid", 6, 10, width - 6, 10),
        *upright,
        line(f"span tone-{tone}", scale(low), 10, scale(high), 10),
        dot(f"dot tone-{tone}", scale(value), 10, 4.5),
    )


def shift_mark(before: float, after: float, *, within: tuple[float, float], width: int = 120) -> Markup:
    """Where a score was (hollow) and where it is now (full), on the line `within`, 14 units high."""
    scale = Scale(*within, 6.0, width - 6.0)
    way = "up" if after > before else "down" if after < before else "same"
    words = f"{number(before)} to {number(after)}"
    return drawing(
        f"shift {way}",
        width,
        14,
        words,
        element("title", words),
        line("grid", 6, 7, width - 6, 7),
        line("span", scale(before), 7, scale(after), 7),
        dot("was", scale(before), 7, 4),
        dot("is", scale(after), 7, 4.5),
    )


def proportion_bar(parts: Sequence[Part], *, title: str) -> Markup:
    """A bar of 1000 by 30 units, stretched to the page's width, cut in proportion; empty when all are 0."""
    total = sum(part.value for part in parts)
    if total <= 0:
        return Markup("")
    drawn, start = [], 0.0
    for part in parts:
        width = part.value / total * 1000
        if width > 0:
            told, kind = element("title", f"{part.label}: {part.told}"), f"tone-{part.tone}"
            drawn.append(element("rect", told, class_=kind, x=start, y=0, width=width, height=30))
        start += width
    return drawing("bar", 1000, 30, title, *drawn, preserveAspectRatio="none")
