"""A whole run of tiny things: model, prompts and run.toml in a folder, for tests over real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.local.options import RunOptions
from orchestrator.local.toml import to_toml
from services.common.spec.run import RunSpec
from tests.fakes.tiny_models import make_tiny_causal

ROOT = Path(__file__).parents[2]
BATCH = 8
TIMES = ("time", "overhead_share", "tokens_per_second")


def make_files(folder: Path) -> Path:
    """model/ and prompts.jsonl."""
    make_tiny_causal(folder / "model")
    rows = [{"prompt_id": f"p{i}", "prompt": f"Count to {i}"} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_tables(folder: Path) -> dict[str, Any]:
    """run.toml over those files, as tables: 4 steps of 8 prompts, 8 new tokens each."""
    return {
        "name": "small",
        "seed": 3,
        "steps": 4,
        # Letters that random models write now and then, so that scores differ.
        "reward_model": "rule:regex:mode=count,pattern=[a-m]",
        "model": {"path": str(folder / "model"), "dtype": "float32", "threads": 1, "device": "cpu"},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "sampling": {"max_new_tokens": 8},
        "algorithm": {"epochs": 2},
        "optimiser": {"learning_rate": 1e-3},
        "rollout": {"batch_groups": BATCH},
        "checkpoint": {"every_steps": 2},
    }


def write_run(folder: Path, *overrides: str) -> Path:
    """run.toml in the folder with the files; `overrides` are a.b=c."""
    path = folder / "run.toml"
    spec = RunSpec.model_validate(run_tables(folder))
    path.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)))
    if overrides:
        changed = RunOptions(overrides=overrides).load_spec(path)
        path.write_text(to_toml(changed.model_dump(mode="json", exclude_none=True)))
    return path


def small_spec(folder: Path, *overrides: str) -> RunSpec:
    """The run as a spec."""
    return RunOptions().load_spec(write_run(folder, *overrides))


def rows_of(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows without what depends on the clock."""
    return [{key: row[key] for key in row if not key.startswith(TIMES)} for row in rows]


def program(
    *arguments: str, env: dict[str, str] | None = None, seconds: float = 110
) -> subprocess.CompletedProcess[str]:
    """`python -m …` to its end, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
