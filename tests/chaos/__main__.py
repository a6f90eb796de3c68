"""`python -m tests.chaos`, `make chaos`: one run under faults, its report, and what was wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.faults import GAP_SECONDS, Fault, schedule, shortest
from tests.chaos.report import REPORT, add, entry
from tests.chaos.run import Outcome, run


def main() -> int:
    """0 where every invariant held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--gap", type=float, default=GAP_SECONDS, help="mean seconds between two faults")
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
        add(given.report, given.seed, entry(given.minutes, faults, outcome))
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
