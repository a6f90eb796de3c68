"""Measures whether generation and learning overlap: real services, whose devices take a second for each batch.

Random walks over the local stack; a generation of a batch and an update each take one second from beginning to end, on
devices that are simulated (the processor sleeps what is left of it), so that what is measured is the flow: admission,
queue, weights, hand-over.

    stale1_over_longest    seconds a step with max_staleness = 1, over the longer of the two: 1 where they overlap
    stale0_over_sum        the same with max_staleness = 0, over both together: 1 where one waits for the other
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmarks import harness
from benchmarks.overlap_device import SECONDS
from benchmarks.soak_run import REWARD, make_files
from orchestrator.local import services
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from services.common.spec.run import RunSpec

WARM = 5
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
BARS = {"stale1_over_longest": harness.at_most(1.1)}


def measure(quick: bool) -> dict[str, float]:
    """All figures; `quick`: fewer steps."""
    steps = 6 if quick else 30
    slow = {
        name: replace(services.ROLES[name], module=f"benchmarks.overlap_{name}")
        for name in ("policy", "learner")
    }
    services.ROLES = {**services.ROLES, **slow}
    with tempfile.TemporaryDirectory(prefix="trimtab-overlap-") as name:
        files = Path(name) / "files"
        make_files(files)
        stale1 = asyncio.run(_seconds_a_step(files, Path(name) / "one", steps, max_staleness=1))
        stale0 = asyncio.run(_seconds_a_step(files, Path(name) / "none", steps, max_staleness=0))
    return {
        "stale1_over_longest": stale1 / SECONDS,
        "stale0_over_sum": stale0 / (2 * SECONDS),
        "stale1_step_seconds": stale1,
        "stale0_step_seconds": stale0,
    }


async def _seconds_a_step(files: Path, out: Path, steps: int, *, max_staleness: int) -> float:
    """Mean wall-clock time between the ends of steps, the first ones left out."""
    layout = RunLayout.prepare(out)
    spec = _spec(files, WARM + steps, max_staleness)
    async with Stack(layout, spec, settings={"reward": {"models": [REWARD]}}, env=_ENVIRONMENT) as stack:
        await stack.ended("learner")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ends = [row["time"] for row in rows[WARM - 1 :]]
    stale = [row["staleness/max"] for row in rows[WARM:]]
    harness.say(
        f"max_staleness {max_staleness}: staleness {min(stale):g} to {max(stale):g}, {len(rows)} steps"
    )
    return fmean(later - earlier for earlier, later in pairwise(ends))


def _spec(files: Path, steps: int, max_staleness: int) -> RunSpec:
    """GRPO on the walks, two from each of the 20 starts a step."""
    return RunSpec.model_validate(
        {
            "name": "overlap",
            "seed": 1,
            "steps": steps,
            "model": {"path": str(files / "model"), "dtype": "float32", "threads": 1, "device": "cpu"},
            "data": {"prompts": str(files / "prompts.jsonl")},
            "sampling": {"max_new_tokens": 10},
            "algorithm": {"kind": "grpo", "num_generations": 2, "beta": 0.0},
            "optimiser": {"learning_rate": 2e-4},
            "rollout": {"batch_groups": 20, "max_staleness": max_staleness},
            "checkpoint": {"every_steps": WARM + steps},
        }
    )


if __name__ == "__main__":
    harness.run("overlap", measure, BARS)
