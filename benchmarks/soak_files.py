"""What a run leaves in its folder, as the account reads it: rows, the last checkpoint's ledger, the kept rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.soak_account import account
from orchestrator.local.layout import RunLayout


def rows_of(file: Path) -> list[dict[str, float]]:
    """Of metrics.jsonl."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def ledger_of(root: Path) -> dict[str, Any]:
    """Of the newest checkpoint."""
    newest = max((root / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    state: dict[str, Any] = json.loads((newest / "state.json").read_text())["ledger"]
    return state


def kept(root: Path, step: int, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of the rollouts that a step took."""
    from pyarrow import parquet

    file = root / "rollouts" / f"step-{step:06d}.parquet"
    rows: list[dict[str, Any]] = parquet.read_table(file, columns=columns).to_pylist()
    return rows


def taken(root: Path, steps: int) -> dict[int, list[str]]:
    """Groups of each step. Files beyond the last step are of a life that was lost."""
    return {
        step: list(dict.fromkeys(row["group"] for row in kept(root, step, ["group"])))
        for step in range(1, steps + 1)
    }


def accounted(layout: RunLayout, standing: frozenset[str], dead: int) -> dict[str, float]:
    """Figures of the account. rollouts_lost: failed, buried, gone, twice or not accounted for."""
    rows = rows_of(layout.metrics_file)
    found = account(ledger_of(layout.root), taken(layout.root, len(rows)), standing, rows)
    lost = found["failed"] + dead + sum(value for name, value in found.items() if name.startswith("wrong_"))
    return {"steps": float(len(rows)), **found, "dead_letters": float(dead), "rollouts_lost": lost}
