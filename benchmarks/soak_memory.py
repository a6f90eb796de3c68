"""Memory of processes over time, their file descriptors and threads, and whether any of it drifts.

The arithmetic is pure; `Recorder` alone looks at the system.

A process lives once or, where it is killed and resumed, many times: each life is a curve of its own. Drift is a slope
common to all lives, each with its own level:

    y_ij = a_i + b t_ij,   from means over stretches of a life, after its warm-up

The interval is Student's over those means. Means of long stretches, since memory moves in steps and neighbouring
looks say nearly the same; it is still an approximation.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import psutil

Look = tuple[float, float]
"""Seconds since the beginning, MiB (or how many)."""
What = Literal["sizes", "descriptors", "threads"]
MIB = 2**20
_STUDENT = (12.70620, 4.30265, 3.18245, 2.77645)
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Slope:
    """MiB an hour with its 95 % interval; NaN where there are too few stretches to say."""

    value: float
    low: float
    high: float
    stretches: int


@dataclass(slots=True)
class Life:
    """One incarnation of a process. Looks are packed: the recorder's own process is one of the measured."""

    pid: int
    moments: array[float] = field(default_factory=lambda: array("d"))
    sizes: array[float] = field(default_factory=lambda: array("d"))
    descriptors: array[float] = field(default_factory=lambda: array("d"))
    threads: array[float] = field(default_factory=lambda: array("d"))

    @property
    def looks(self) -> list[Look]:
        """Of its memory, in order."""
        return self.looks_at("sizes")

    def looks_at(self, what: What) -> list[Look]:
        """Of one of its figures, in order."""
        return list(zip(self.moments, getattr(self, what), strict=True))


class Recorder:
    """Resident size, file descriptors and threads of named processes, look by look."""

    def __init__(self) -> None:
        self.lives: dict[str, list[Life]] = {}
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def look(self, pids: Mapping[str, int | None]) -> None:
        """Look at each once; a process that is not there has no look. Children count as processes of their own."""
        for name, pid in pids.items():
            if pid is not None:
                self.note(name, pid)
                for at, child in enumerate(_children(pid)):
                    self.note(f"{name}_child{at or ''}", child)

    def note(self, name: str, pid: int) -> None:
        """Look at one process alone."""
        size, counts = resident_mib(pid), counts_of(pid)
        if size is None or counts is None:
            return
        lives = self.lives.setdefault(name, [])
        if not lives or lives[-1].pid != pid:
            lives.append(Life(pid))
        lives[-1].moments.append(self.seconds)
        lives[-1].sizes.append(size)
        lives[-1].descriptors.append(counts[0])
        lives[-1].threads.append(counts[1])


def resident_mib(pid: int) -> float | None:
    """Resident size, MiB; None where the process is gone. (A zombie has none.)"""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * _PAGE / MIB or None


def counts_of(pid: int) -> tuple[int, int] | None:
    """File descriptors and threads; None where the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # proc(5): field 20 of the line is num_threads; the state, field 3, is the first after the name.
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()), int(fields[17])
    except (OSError, IndexError, ValueError):
        return None


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def stretches(looks: Sequence[Look], warm_up: float, length: float, *, after: float = 0.0) -> list[Look]:
    """Means over whole stretches of `length` seconds, from `warm_up` seconds after the first look on, nor before
    `after` (seconds since the beginning)."""
    if not looks:
        return []
    begin = max(looks[0][0] + warm_up, after)
    cells: dict[int, list[Look]] = {}
    for moment, size in looks:
        if moment >= begin:
            cells.setdefault(int((moment - begin) // length), []).append((moment, size))
    whole = [
        cell for at, cell in sorted(cells.items()) if begin + (at + 1) * length <= looks[-1][0] + length / 4
    ]
    return [
        (sum(moment for moment, _ in cell) / len(cell), sum(size for _, size in cell) / len(cell))
        for cell in whole
    ]


def slope(lives: Sequence[Sequence[Look]]) -> Slope:
    """The common slope of several curves of means, each with a level of its own."""
    curves = [curve for curve in lives if len(curve) > 1]
    count, free = sum(map(len, curves)), sum(map(len, curves)) - len(curves) - 1
    if free < 1:
        return Slope(float("nan"), float("nan"), float("nan"), count)
    moments, sizes = _centred(curves, 0), _centred(curves, 1)
    spread = sum(moment**2 for moment in moments)
    value = sum(moment * size for moment, size in zip(moments, sizes, strict=True)) / spread
    left = sum((size - value * moment) ** 2 for moment, size in zip(moments, sizes, strict=True))
    half = student(free) * (left / free / spread) ** 0.5
    return Slope(value * 3600, (value - half) * 3600, (value + half) * 3600, count)


def _centred(curves: Sequence[Sequence[Look]], which: int) -> list[float]:
    """Moments or sizes, less their curve's mean."""
    found = []
    for curve in curves:
        mean = sum(look[which] for look in curve) / len(curve)
        found += [look[which] - mean for look in curve]
    return found


def student(free: int) -> float:
    """97.5 % point of Student's t: Cornish and Fisher's expansion, a table where that is not good enough."""
    if free <= len(_STUDENT):
        return _STUDENT[free - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / free + second / free**2 + third / free**3)
