"""Owns what all benchmarks share: command line, machine description, table for people, JSON as the last line.

Knows nothing of what is measured. Figures keep their names, by which results are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.allocator import LARGE_PAGES, keep_freed_memory

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure should reach: at least or at most `value`."""

    kind: str
    value: float

    def holds(self, figure: float) -> bool:
        """Whether the figure reaches it."""
        return figure >= self.value if self.kind == "at least" else figure <= self.value

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


def at_least(value: float) -> Bar:
    """A bar for figures that should be large."""
    return Bar("at least", value)


def at_most(value: float) -> Bar:
    """A bar for figures that should be small."""
    return Bar("at most", value)


def run(
    name: str,
    measure: Callable[[bool], Figures],
    bars: Mapping[str, Bar] | None = None,
    *,
    own: argparse.ArgumentParser | None = None,
) -> None:
    """Parse --quick, measure, print. `measure` gets quick and returns the figures.

    own: the benchmark's own flags, which it has read already; --help shows them, too.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", parents=[] if own is None else [own]
    )
    parser.add_argument("--quick", action="store_true", help="a shorter run of the same measurement")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the services do: what is measured in this process stands on the same ground
    before = os.getloadavg()[0]
    began = time.monotonic()
    figures = dict(measure(arguments.quick))
    seconds = time.monotonic() - began
    say(table(name, figures, bars or {}))
    machine = machine_info() | {"load_before": round(before, 2), "quick": arguments.quick}
    result = {
        "benchmark": name,
        "machine": machine,
        "seconds": round(seconds, 3),
        # JSON knows no infinity and no NaN: the table has them.
        "figures": {key: float(f"{value:.6g}") for key, value in figures.items() if math.isfinite(value)},
    }
    print(json.dumps(result, allow_nan=False), flush=True)


def with_large_pages() -> None:
    """Begin this program anew as `trimtab` and the image begin a policy: its C library takes pages of 2 MB."""
    if sys.platform == "linux" and not LARGE_PAGES.keys() & os.environ.keys():
        environment = {**os.environ, **LARGE_PAGES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves


def say(text: str) -> None:
    """A line for people: never on stdout, which belongs to the JSON."""
    print(text, file=sys.stderr, flush=True)


def table(name: str, figures: Figures, bars: Mapping[str, Bar]) -> str:
    """The figures with their bars, in columns."""
    width = max((len(key) for key in figures), default=0)
    lines = [f"benchmarks.{name}"]
    for key, value in figures.items():
        bar = bars.get(key)
        verdict = "" if bar is None else f"   {bar}: {'reached' if bar.holds(value) else 'MISSED'}"
        lines.append(f"  {key:<{width}}  {value:>12,.4g}{verdict}")
    return "\n".join(lines)


def machine_info() -> dict[str, object]:
    """What the figures depend on: processor, cores we may use, memory, system, Python."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _first(file: str, key: str) -> str:
    """The value of the first `key : value` line of a file, empty where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
