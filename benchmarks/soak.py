"""Runs random walks over the local stack for 40 minutes, its learner killed and resumed at random moments.

    rss_slope_<process>                MiB an hour with its 95 % interval (`_low`, `_high`), after the warm-up
    rss_slope_learner_resumed          the same over all its lives: does a resumed learner come back larger?
    fds_…, threads_…                   file descriptors and threads of each process: early, last, how many an hour more
    log_<name>_bytes_per_hour          written to each log; log_largest_kib: none grows beyond where it is set aside
    wrong_sum, wrong_twice, …          what the account does not explain: 0 where it is exact (soak_account.py)
    optimality                         100 drawn walks from each of the 20 starts, by the trained weights, at the end

Real services, real queue server, real checkpoints; GRPO, up to one step stale; every rollout is kept, so that what each
step took can be counted without the ledger. `--minutes`, `--seed`, `--every` (mean seconds between two endings of the
learner; longer than the soak, and most likely there is none), `--plot FILE`, `--keep FOLDER`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.soak_account import account
from benchmarks.soak_counts import count_figures
from benchmarks.soak_files import ledger_of, rows_of, taken
from benchmarks.soak_memory import Life, Slope, slope, stretches
from benchmarks.soak_plot import write_plot
from benchmarks.soak_run import LOG_BYTES, Soaked, soak

QUICK_MINUTES = 3.0
WARM_UP_SHARE = 1 / 3
"""Of the soak: caches, arenas and what is bounded fill."""
STRETCHES = 20
LIFE_WARM_UP_SECONDS, LIFE_STRETCH_SECONDS = 45.0, 15.0
"""Of one life of the learner, beside that."""
WRONG = ("wrong_sum", "wrong_twice", "wrong_trained", "wrong_streams", "wrong_rows", "dead_letters")
BARS = {
    **{name: harness.at_most(0) for name in WRONG},
    "optimality": harness.at_least(0.9),
    "rss_slope_worst_low": harness.at_most(10.0),
    "fds_growth_worst": harness.at_most(2),
    "fds_slope_worst_low": harness.at_most(1.0),
    "threads_growth_worst": harness.at_most(1),
    "threads_slope_worst_low": harness.at_most(1.0),
    # What comes between two looks of the supervisor stands on top of what a log is set aside at.
    "log_largest_kib": harness.at_most(2 * LOG_BYTES / 1024),
}


def measure(
    quick: bool, minutes: float, seed: int, every: float, plot: Path | None, keep: Path | None
) -> harness.Figures:
    """All figures; the plot is written where one is asked for."""
    seconds = 60 * (QUICK_MINUTES if quick else minutes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        soaked = asyncio.run(soak(folder, seconds, seed, every, harness.say))
        rows = rows_of(soaked.layout.metrics_file)
        figures = {"minutes": seconds / 60, "steps": float(len(rows)), **_endings(soaked)}
        figures |= account(
            ledger_of(soaked.layout.root), taken(soaked.layout.root, len(rows)), soaked.standing, rows
        )
        figures["dead_letters"] = float(soaked.dead_letters)
        figures["optimality"] = soaked.optimality
        slopes = memory_slopes(soaked.recorder.lives, seconds)
        figures |= memory_figures(slopes, soaked.recorder.lives)
        after = WARM_UP_SHARE * seconds
        figures |= count_figures(
            soaked.recorder.lives,
            after=after,
            stretch=(seconds - after) / STRETCHES,
            life_warm_up=LIFE_WARM_UP_SECONDS,
            life_stretch=LIFE_STRETCH_SECONDS,
        )
        figures |= soaked.logs.figures(seconds)
        looks = {name: [life.looks for life in of_name] for name, of_name in soaked.recorder.lives.items()}
        (folder / "memory.json").write_text(json.dumps({"lives": looks, "ends": soaked.ends}))
    if plot is not None:
        notes = {
            name: f"{one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f}) MiB/h"
            for name, one in slopes.items()
        }
        write_plot(plot, soaked.recorder.lives, soaked.ends, notes)
    return figures


def memory_slopes(lives: dict[str, list[Life]], seconds: float) -> dict[str, Slope]:
    """Of each process: those that lived through it by its stretches, those that came and went by their lives'."""
    found, after = {}, WARM_UP_SHARE * seconds
    for name, of_name in lives.items():
        once = len(of_name) == 1
        warm_up = 0.0 if once else LIFE_WARM_UP_SECONDS
        length = (seconds - after) / STRETCHES if once else LIFE_STRETCH_SECONDS
        curves = [stretches(life.looks, warm_up, length, after=after) for life in of_name]
        found[name] = slope(curves)
        if not once:
            found[f"{name}_resumed"] = slope([[look for curve in curves for look in curve]])
    return found


def memory_figures(slopes: dict[str, Slope], lives: dict[str, list[Life]]) -> dict[str, float]:
    """Sizes at the end and slopes, where there were stretches enough to say; the worst lower bound of all."""
    figures: dict[str, float] = {}
    for name, of_name in lives.items():
        figures[f"rss_{name}_mib"] = of_name[-1].looks[-1][1]
    told = {name: one for name, one in slopes.items() if math.isfinite(one.value)}
    for name, one in told.items():
        figures |= {
            f"rss_slope_{name}": one.value,
            f"rss_slope_{name}_low": one.low,
            f"rss_slope_{name}_high": one.high,
        }
    figures["rss_slope_worst_low"] = max((one.low for one in told.values()), default=0.0)
    return figures


def _endings(soaked: Soaked) -> dict[str, float]:
    hows = [how for _, how in soaked.ends]
    return {"killed": float(hows.count("kill")), "terminated": float(hows.count("term"))}


def main() -> None:
    """Take our own flags, leave the rest to the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", add_help=False)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--every", type=float, default=90.0, help="mean seconds between two endings of the learner"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--keep", type=Path)
    mine, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if not 0.5 <= mine.minutes <= 24 * 60 or mine.every <= 0:
        parser.error("expected --minutes from 0.5 on and --every above 0")
    given = functools.partial(
        measure, minutes=mine.minutes, seed=mine.seed, every=mine.every, plot=mine.plot, keep=mine.keep
    )
    harness.run("soak", given, BARS, own=parser)


if __name__ == "__main__":
    main()
