"""What the demo and a round of `trimtab iterate` do alike: services' settings, the reward-model job, a learner's life.

Refuses to know in which order, and with which draws: there they differ, and figures rest on it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Protocol

from orchestrator.local.progress import LiveView
from orchestrator.local.stack import Stack
from orchestrator.local.train import StatusWatch
from trimtab.learner.v1 import learner_pb2 as learner


class RewardSettings(Protocol):
    """How a reward model is fitted; both specs say it by these names."""

    @property
    def reward_base(self) -> str:
        """What it begins from."""

    @property
    def reward_epochs(self) -> int:
        """Passes over the comparisons."""

    @property
    def reward_learning_rate(self) -> float:
        """Of AdamW."""

    @property
    def reward_batch_pairs(self) -> int:
        """Comparisons in a batch, at least."""

    @property
    def reward_dropout(self) -> float:
        """Of encoders."""


def service_settings(annotator_rule: str) -> dict[str, dict[str, Any]]:
    """Beyond what follows from the run: large batches, and the built-in annotator where there is a rule."""
    annotator = {"name": "built-in", "rule": annotator_rule, "poll_seconds": 1.0}
    return {
        "policy": {
            "max_rows": 128,
            "queue": {"batch_groups": 128},
            "server": {"default_deadline_seconds": 1200},
        },
        "reference": {"queue": {"batch_groups": 128}, "token_budget": 2048},
        "reward": {"queue": {"batch_groups": 128}},
        "preference": {"annotators": [annotator] if annotator_rule else []},
    }


def job_command(name: str, *arguments: str) -> list[str]:
    """A job of the learner's as a process of its own."""
    return [sys.executable, "-m", "services.learner.jobs", name, *arguments]


def reward_model_arguments(
    pairs: Path, folder: Path, told: RewardSettings, *, seed: int, train_embeddings: bool
) -> list[str]:
    """From comparisons to `folder`/reward_model and reward_model.json."""
    return [
        *("--pairs", str(pairs)),
        *("--model", told.reward_base),
        *("--out", str(folder / "reward_model")),
        *("--report", str(folder / "reward_model.json")),
        *("--epochs", str(told.reward_epochs)),
        *("--learning-rate", str(told.reward_learning_rate)),
        *("--batch-pairs", str(told.reward_batch_pairs)),
        *("--dropout", str(told.reward_dropout)),
        *("--seed", str(seed)),
        *(("--train-embeddings",) if train_embeddings else ()),
        # As the settings were found; they are not those of a head that begins normalised.
        "--no-normalise-before",
    ]


async def learned(stack: Stack, view: LiveView) -> learner.GetRunStatusResponse | None:
    """Watch the learner, which is there, to its end; its last status. Raises what ended it otherwise."""
    watch = StatusWatch(view)
    polling = asyncio.create_task(watch.run(stack.endpoint("learner")))
    try:
        await stack.ended("learner")
    finally:
        polling.cancel()
        await asyncio.wait([polling])
    return watch.latest
