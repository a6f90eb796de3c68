"""What a run leaves in its folder, as the account reads it: rows, the last checkpoint's ledger, the kept rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
