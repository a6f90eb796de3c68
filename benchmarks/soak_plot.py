"""The plot of benchmarks.soak: resident memory of each process over time, and when the learner was ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.soak_memory import Life

WIDTH, ROW, LEFT, TOP, RIGHT, BOTTOM = 760, 74, 92, 34, 150, 40
COLOURS = ("#1b6ca8", "#c8553d", "#3d8b5f", "#8a5fb0", "#b58900", "#5c6b73", "#d1495b", "#2a9d8f")


def write_plot(
    path: Path,
    lives: Mapping[str, Sequence[Life]],
    ends: Sequence[tuple[float, str]],
    notes: Mapping[str, str],
) -> None:
    """One row a process, each on a scale of its own. ends: seconds and how (`kill`, `term`). notes: beside each row."""
    last = max(look[0] for of_name in lives.values() for life in of_name for look in life.looks)
    height = TOP + ROW * len(lives) + BOTTOM
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>']
    parts.append(f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>')
    parts.append(
        f'<text x="{LEFT}" y="16">resident memory, MiB; the learner was '
        f'<tspan fill="#c8553d">killed</tspan> or <tspan fill="#1b6ca8">told to end</tspan> at the uprights</text>'
    )
    bottom = TOP + ROW * len(lives)
    for moment, how in ends:
        x, colour = _x(moment, last), "#c8553d" if how == "kill" else "#1b6ca8"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="{colour}" opacity="0.35"/>'
        )
    for at, (name, of_name) in enumerate(lives.items()):
        parts += _row(name, of_name, last, TOP + ROW * at, COLOURS[at % len(COLOURS)], notes.get(name, ""))
    for tick in range(6):
        x = _x(last * tick / 5, last)
        parts.append(
            f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{last * tick / 300:.1f}</text>'
        )
    parts.append(f'<text x="{_x(last / 2, last):.0f}" y="{bottom + 32}" text-anchor="middle">minutes</text>')
    path.write_text("".join(parts) + "</svg>\n")


def _x(moment: float, last: float) -> float:
    return LEFT + moment / last * (WIDTH - LEFT - RIGHT)


def _row(name: str, lives: Sequence[Life], last: float, top: float, colour: str, note: str) -> list[str]:
    sizes = [size for life in lives for _, size in life.looks]
    low, high = min(sizes), max(sizes)
    room = max(high - low, 0.02 * high, 1.0)

    def place(size: float) -> float:
        return top + ROW - 14 - (size - low) / room * (ROW - 26)

    drawn = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place(size):.1f}" y2="{place(size):.1f}" stroke="#e4e4e4"/>'
        f'<text x="{LEFT - 6}" y="{place(size) + 4:.1f}" text-anchor="end" fill="#666666">{size:.0f}</text>'
        for size in (low, low + room)
    ]
    for life in lives:
        line = " ".join(f"{_x(moment, last):.1f},{place(size):.1f}" for moment, size in life.looks)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    middle = top + ROW / 2
    drawn.append(f'<text x="{WIDTH - RIGHT + 10}" y="{middle - 6:.0f}" fill="{colour}">{name}</text>')
    drawn.append(f'<text x="{WIDTH - RIGHT + 10}" y="{middle + 9:.0f}" fill="#666666">{note}</text>')
    return drawn
