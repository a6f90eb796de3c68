"""Whether the file descriptors and threads of processes stay as many as they were. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.soak_memory import Life, Look, What, slope, stretches

_SHARE = 1 / 4
"""Of the time after the warm-up that counts as early, and as much as last."""
NAMES: dict[What, str] = {"descriptors": "fds", "threads": "threads"}


def count_figures(
    lives: Mapping[str, Sequence[Life]],
    *,
    after: float,
    stretch: float,
    life_warm_up: float,
    life_stretch: float,
) -> dict[str, float]:
    """Of each process how many it had early and last (medians), and how many an hour more; of all the worst.

    after: seconds of the whole that are left out. stretch: seconds of the means for the slope. A process that comes and
    goes has one curve for each life, as its memory has: of those life_warm_up is left out, life_stretch long are means.
    """
    figures: dict[str, float] = {}
    for what, told in NAMES.items():
        grown, slopes = [0.0], [0.0]
        for name, of_name in lives.items():
            once = len(of_name) == 1
            warm_up, length = (0.0, stretch) if once else (life_warm_up, life_stretch)
            looks = _kept(of_name, what, after, warm_up)
            if not looks:
                continue
            early, last = _early_and_last(looks)
            figures |= {f"{told}_{name}_early": early, f"{told}_{name}_last": last}
            grown.append(last - early)
            curves = [stretches(life.looks_at(what), warm_up, length, after=after) for life in of_name]
            found = slope(curves)
            if math.isfinite(found.value):
                figures[f"{told}_{name}_per_hour"] = found.value
                slopes.append(found.low)
        figures |= {f"{told}_growth_worst": max(grown), f"{told}_slope_worst_low": max(slopes)}
    return figures


def _kept(lives: Sequence[Life], what: What, after: float, warm_up: float) -> list[Look]:
    return [
        look
        for life in lives
        for look in life.looks_at(what)
        if look[0] >= max(after, life.moments[0] + warm_up)
    ]


def _early_and_last(looks: Sequence[Look]) -> tuple[float, float]:
    """Medians, which a connection that comes and goes does not move."""
    first, end = looks[0][0], looks[-1][0]
    part = (end - first) * _SHARE
    early = [count for moment, count in looks if moment <= first + part]
    last = [count for moment, count in looks if moment >= end - part]
    return median(early), median(last)
