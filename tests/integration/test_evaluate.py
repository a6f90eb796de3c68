"""`trimtab evaluate` and `trimtab tasks`: a policy service beside the model that it serves; mistakes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from services.common.server import serving
from services.learner.jobs.__main__ import app
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import model_spec


def trimtab(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=110
    )


async def test_a_service_and_its_model_agree_when_greedy(tmp_path: Path) -> None:
    """Greedy answers of a policy service are those of its model here: every difference is 0."""
    folder = make_tiny_causal(tmp_path / "tiny", context_length=256, width=32)
    config = PolicyConfig(model=model_spec(folder))
    async with serving(config, PolicyApplication(config)) as where:
        done = await asyncio.to_thread(
            CliRunner().invoke, app,
            ["evaluate", "--model", f"here={folder}", "--model", f"there={where.grpc}", "--task", "dates",
             "-n", "6", "--temperature", "0", "--max-new-tokens", "5", "--dtype", "float32", "--json"],
        )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    here, there = told["models"]
    assert there["metrics"] == here["metrics"]
    assert all(one["value"] == 0 for one in there["minus_first"].values())


def test_mistakes_are_one_line() -> None:
    """An unknown task, and a service that is not there: one line on stderr, exit status 2 and 1."""
    done = trimtab("evaluate", "--model", "x", "--task", "none")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no task 'none'")
    assert len(done.stderr.strip().splitlines()) == 1


def test_tasks_are_listed_and_written(tmp_path: Path) -> None:
    """`trimtab tasks` names them all, and writes the prompts of one as a run reads them."""
    assert "increasing-numbers" in trimtab("tasks").stdout
    done = trimtab("tasks", "summarisation", "--limit", "3", "--out", str(tmp_path / "p.jsonl"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["prompt", "reference"]] * 3
