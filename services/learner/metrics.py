"""metrics.jsonl: one row a step, and where a step's time went. Knows no model and no queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.learner.checkpoints import storage_errors
from services.learner.ledger import Ledger
from services.learner.rollouts import model_seconds
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

_STAGES = ("policy", "reference", "reward")


def timings(groups: Sequence[RolloutGroup], update: float, wall: float) -> dict[str, float]:
    """Seconds inside models by stage, and what is left of the step's `wall` seconds: overhead."""
    spent = dict.fromkeys(_STAGES, 0.0)
    tokens = 0
    for group in groups:
        for timing in group.timings:
            name = timing.stage.partition("/")[0]
            spent[name] = spent.get(name, 0.0) + timing.model_seconds
            tokens += timing.tokens if name == "policy" else 0
    inside = update + sum(map(model_seconds, groups))
    return {f"time/{name}": seconds for name, seconds in spent.items()} | {
        "time/step": wall,
        "overhead_share": 1 - inside / wall,
        "tokens_per_second": tokens / max(spent["policy"], 1e-9),
    }


def append_metrics(path: Path, step: int, metrics: dict[str, float], ledger: Ledger) -> dict[str, float]:
    """Add a step's row, and return it. Raises StorageFull."""
    counts = {f"rollouts/{name}": count for name, count in ledger.counts().items()}
    row: dict[str, Any] = {"step": step, "time": time.time(), **metrics, **counts}
    with storage_errors(str(path)):
        # Whoever starts the learner need not have made the run's folder: on Kubernetes nobody has.
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    return row


def keep_metrics(path: Path, steps: int) -> None:
    """Drop the rows of steps that will be trained again. Raises StorageFull.

    Line by line, as below: a long run's file is large, and what a learner once took it does not give back.
    """
    if not path.exists():
        return
    aside = path.with_name(f".{path.name}.writing")
    with storage_errors(str(path)):
        with path.open(errors="replace") as rows, aside.open("w") as kept:
            kept.writelines(f"{line.rstrip()}\n" for line in rows if _step_of(line) in range(1, steps + 1))
        aside.replace(path)


def metrics_rows(path: Path) -> Iterator[dict[str, float]]:
    """One after the other."""
    if path.exists():
        with path.open() as rows:
            yield from map(json.loads, rows)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # A line that a crash cut short, or that a disk damaged.
        return 0
