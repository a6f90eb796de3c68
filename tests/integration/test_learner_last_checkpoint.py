"""A learner that is drained in the middle of a run: what it has trained is not trained again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from services.common.server import serving
from services.learner.application import LearnerApplication
from services.learner.config import LearnerConfig
from tests.fakes.small_runs import rows_of
from tests.fakes.tiny_runs import run_spec
from tests.fakes.walk_models import make_walker, write_walks
from tests.integration.test_supervisor import until

STEPS = 100_000
"""More than anybody waits for."""


def settings(folder: Path, drain_seconds: float = 10) -> LearnerConfig:
    """An offline run whose own checkpoints never come."""
    tables: dict[str, Any] = {
        "algorithm": {"kind": "ilql"},
        "data": {"prompts": str(write_walks(folder / "walks.jsonl"))},
        "rollout": {"batch_groups": 8},
        "checkpoint": {"every_steps": STEPS},
    }
    spec = run_spec(make_walker(folder / "start"), steps=STEPS, **tables)
    return LearnerConfig.model_validate(
        {"run": spec, "out": folder / "run", "server": {"drain_seconds": drain_seconds}}
    )


def steps_of(config: LearnerConfig) -> list[int]:
    return [int(row["step"]) for row in rows_of(config.out)]


def checkpoints_of(config: LearnerConfig) -> list[str]:
    return sorted(path.name for path in config.out.glob("checkpoints/step-*"))


async def train_until(config: LearnerConfig, step: int) -> None:
    """And drain it then."""
    file = config.out / "metrics.jsonl"
    async with serving(config, LearnerApplication(config)):
        await until(lambda: file.is_file() and len(file.read_text().splitlines()) >= step)


async def test_a_drained_learner_writes_a_last_checkpoint(tmp_path: Path) -> None:
    """Of the last step that was trained; the next learner goes on with the one after it."""
    config = settings(tmp_path)
    await train_until(config, 3)
    first = steps_of(config)
    assert checkpoints_of(config) == [f"step-{first[-1]:06d}"]
    await train_until(config, first[-1] + 2)
    assert steps_of(config) == list(range(1, steps_of(config)[-1] + 1))
    assert checkpoints_of(config)[-1] == f"step-{steps_of(config)[-1]:06d}"


async def test_a_step_that_does_not_end_in_time_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice of a spot node is short: it ends within its bound, and the last checkpoint stays as it was."""
    config = settings(tmp_path, drain_seconds=1)
    application = LearnerApplication(config)
    async with serving(config, application):
        going = application._going
        assert going is not None
        await until(lambda: going.step >= 2)
        step = going.trainer.step
        begun, may_end = threading.Event(), threading.Event()

        def endless(samples: Any) -> dict[str, float]:
            begun.set()
            may_end.wait()
            return step(samples)

        monkeypatch.setattr(going.trainer, "step", endless)
        await until(begun.is_set)
    # Drained, though the step goes on.
    assert checkpoints_of(config) == []
    may_end.set()
