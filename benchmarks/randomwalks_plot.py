"""The plot of benchmarks.randomwalks: optimality over the share of the budget that is spent, as one SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[int, float]]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 56, 20, 130, 48
COLOURS = ("#1b6ca8", "#c8553d", "#3d8b5f", "#8a5fb0", "#b58900", "#5c6b73", "#d1495b", "#2a9d8f")


def write_plot(path: Path, curves: Mapping[str, Sequence[Curve]], lines: Mapping[str, float]) -> None:
    """curves: for each algorithm one curve of (spent, optimality) a seed, all at the same places; their mean is drawn
    as a line and their range as a band. lines: what is known, dashed."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>')
    parts += _axes()
    for label, value in lines.items():
        y = _y(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888888" '
            f'stroke-dasharray="4 4"/><text x="{WIDTH - RIGHT - 4}" y="{y - 4:.1f}" text-anchor="end" '
            f'fill="#666666">{label}</text>'
        )
    for at, (name, of_seeds) in enumerate(curves.items()):
        parts += _curve(name, of_seeds, COLOURS[at % len(COLOURS)], at)
    path.write_text("".join(parts) + "</svg>\n")


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _axes() -> list[str]:
    drawn = []
    for tick in range(6):
        value = tick / 5
        y, x = _y(value), _x(value)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.0%}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">share of the budget spent</text>'
        f'<text x="14" y="{HEIGHT / 2:.0f}" transform="rotate(-90 14 {HEIGHT / 2:.0f})" text-anchor="middle">'
        "optimality, sampled</text>"
    )
    return drawn


def _curve(name: str, of_seeds: Sequence[Curve], colour: str, at: int) -> list[str]:
    last = of_seeds[0][-1][0]
    places = [spent / last for spent, _ in of_seeds[0]]
    columns = list(zip(*[[value for _, value in curve] for curve in of_seeds], strict=True))
    means = [sum(column) / len(column) for column in columns]
    upper = [f"{_x(x):.1f},{_y(max(column)):.1f}" for x, column in zip(places, columns, strict=True)]
    lower = [f"{_x(x):.1f},{_y(min(column)):.1f}" for x, column in zip(places, columns, strict=True)]
    line = " ".join(f"{_x(x):.1f},{_y(mean):.1f}" for x, mean in zip(places, means, strict=True))
    y = TOP + 14 + 20 * at
    return [
        f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="{colour}" opacity="0.12"/>',
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<path d="M{WIDTH - RIGHT + 12},{y}h22" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{WIDTH - RIGHT + 40}" y="{y + 4}">{name}</text>',
    ]
