"""`python -m tests.chaos`, `make chaos`: one run under faults, its report, and what was wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.faults import Fault, schedule, shortest
from tests.chaos.run import Outcome, run

REPORT = Path(__file__).parent / "report.json"


def main() -> int:
    """0 where every invariant held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--gap", type=float, default=7.0, help="mean seconds between two faults")
    parser.add_argument("--report", type=Path, default=REPORT, help="runs are added to it by their seed")
    parser.add_argument(
        "--shrink", action="store_true", help="after a failure look for the shortest schedule"
    )
    parser.add_argument("--keep", type=Path, help="leave the run's folder here")
    given = parser.parse_args()
    faults = schedule(given.seed, 60 * given.minutes, gap=given.gap)
    with tempfile.TemporaryDirectory(prefix="trimtab-chaos-") as temporary:
        folder = given.keep or Path(temporary)
        outcome = _run(folder / "whole", faults, given.seed)
        _write(given.report, given.seed, given.minutes, faults, outcome)
        for told in outcome.wrong:
            _say(f"WRONG: {told}")
        if not outcome.wrong:
            _say(f"seed {given.seed}: {len(faults)} faults, every invariant held")
            return 0
        _say(f"seed {given.seed}: {len(outcome.wrong)} things were wrong")
        if given.shrink:
            _say_shortest(folder, faults, given.seed)
    return 1


def _run(folder: Path, faults: Sequence[Fault], seed: int) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(run(folder, faults, seed, _say))


def _say_shortest(folder: Path, faults: Sequence[Fault], seed: int) -> None:
    tried = 0

    async def fails(part: list[Fault]) -> bool:
        nonlocal tried
        tried += 1
        again = folder / f"part-{tried}"
        again.mkdir(parents=True)
        return bool((await run(again, part, seed, lambda _: None)).wrong)

    for fault in asyncio.run(shortest(faults, fails)):
        _say(f"still fails with: {fault}")


def _write(report: Path, seed: int, minutes: float, faults: Sequence[Fault], outcome: Outcome) -> None:
    """Add this run to the report, in place of an earlier one of its seed."""
    runs: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for fault, recovery in outcome.recoveries:
        seconds[f"{fault.kind} {fault.target}"].append(recovery)
    runs[str(seed)] = {
        "minutes": minutes,
        "faults": len(faults),
        "wrong": outcome.wrong,
        "figures": {name: round(value, 4) for name, value in outcome.figures.items()},
        "recovery_seconds": {
            kind: {"times": len(all_), "median": round(median(all_), 2), "worst": round(max(all_), 2)}
            for kind, all_ in sorted(seconds.items())
        },
    }
    report.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
