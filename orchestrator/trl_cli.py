"""`trimtab from-trl`: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("from-trl")(from_trl)


def from_trl(
    config: Annotated[
        Path, typer.Argument(help="TRL's YAML, or a trainer's config as JSON.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    trainer: Annotated[
        str, typer.Option(help="grpo, rloo, ppo, dpo, sft or reward.", show_default="told by its fields")
    ] = "",
    data: Annotated[
        str, typer.Option(help="A file or datasets:NAME?split=….", show_default="the config's dataset_name")
    ] = "",
    model: Annotated[str, typer.Option(help="Where to begin.", show_default="the config's")] = "",
    reward_func: Annotated[
        list[str] | None,
        typer.Option(
            help="module:function as for TRL, or a reward model; again for more.", show_default=False
        ),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Then train.")] = False,
) -> None:
    """Take a TRL config, data set and reward functions: every field is carried over, refused or told to do nothing."""
    from rich.console import Console

    from orchestrator.trl.command import RUN_FILE, Wanted, tell, write
    from orchestrator.trl.convert import JOBS

    draft = write(
        Wanted(config=config, out=out, trainer=trainer, data=data, model=model, rewards=reward_func or ())
    )
    tell(draft, out, Console())
    if not run:
        return
    if draft.trainer in JOBS:
        from orchestrator.jobs_cli import become

        become(draft.arguments[0], draft.arguments[1:])
    from orchestrator.local import train
    from orchestrator.local.options import RunOptions

    raise typer.Exit(train.train(out / RUN_FILE, RunOptions(out=out / "run")))
