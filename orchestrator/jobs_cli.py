"""Commands that hand over to a job of the learner: the job owns its flags, its help and its exit status."""

from __future__ import annotations

import os
import sys

import typer

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the jobs' commands."""
    settings = {"context_settings": _PASSED_ON, "add_help_option": False}
    app.command("reward-model", **settings)(reward_model)  # type: ignore[arg-type]
    app.command("sft", **settings)(sft)  # type: ignore[arg-type]
    app.command("evaluate", **settings)(evaluate)  # type: ignore[arg-type]


def reward_model(context: typer.Context) -> None:
    """Train a reward model on comparisons."""
    become("reward-model", context.args)


def sft(context: typer.Context) -> None:
    """Fine-tune a model on given answers."""
    become("sft", context.args)


def evaluate(context: typer.Context) -> None:
    """Measure models on a task, side by side, with intervals."""
    become("evaluate", context.args)


def become(job: str, arguments: list[str]) -> None:
    """Replace this process: signals, output and exit status are then the job's without a go-between."""
    os.environ["TRIMTAB_PROGRAM"] = "trimtab"
    os.execv(sys.executable, [sys.executable, "-m", "services.learner.jobs", job, *arguments])  # noqa: S606
