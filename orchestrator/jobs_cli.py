"""Commands that hand over to the learner or a job of it: that owns its flags, its help and its exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the jobs' commands."""
    settings = {"context_settings": _PASSED_ON, "add_help_option": False}
    app.command("reward-model", **settings)(reward_model)  # type: ignore[arg-type]
    app.command("sft", **settings)(sft)  # type: ignore[arg-type]
    app.command("learner", context_settings=_PASSED_ON)(learner)
    app.command("evaluate", **settings)(evaluate)  # type: ignore[arg-type]


def reward_model(context: typer.Context) -> None:
    """Train a reward model on comparisons."""
    become("reward-model", context.args)


def sft(context: typer.Context) -> None:
    """Fine-tune a model on given answers."""
    become("sft", context.args)


def learner(
    context: typer.Context,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="One GPU each.", show_default="the configuration's")
    ] = None,
) -> None:
    """The learner service, as one process or several that share a model; other flags as trimtab-learner's."""
    said = [] if processes is None else ["--set", f"processes={processes}"]
    os.execv(sys.executable, [sys.executable, "-m", "services.learner", *context.args, *said])  # noqa: S606


def evaluate(context: typer.Context) -> None:
    """Measure models on a task, side by side, with intervals."""
    become("evaluate", context.args)


def become(job: str, arguments: list[str]) -> None:
    """Replace this process: signals, output and exit status are then the job's without a go-between."""
    os.environ["TRIMTAB_PROGRAM"] = "trimtab"
    os.execv(sys.executable, [sys.executable, "-m", "services.learner.jobs", job, *arguments])  # noqa: S606
