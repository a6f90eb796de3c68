"""`trimtab tasks`: which tasks there are, and a task's prompts as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tasks)


def tasks(
    name: Annotated[str, typer.Argument(help="Write this one's prompts.", show_default=False)] = "",
    out: Annotated[Path | None, typer.Option(help="JSON lines.", show_default="standard output")] = None,
    data: Annotated[
        str, typer.Option(help="A file or datasets:NAME?split=….", show_default="the task's own")
    ] = "",
    split: Annotated[str, typer.Option(help="Of the task's own prompts: train or test.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of generated prompts.")] = 0,
) -> None:
    """List the tasks; or write one's prompts, with references and columns, as a run or TRL reads them."""
    from services.common.errors import UserError
    from services.common.tasks.registry import find_task, task_rows

    if not name:
        _list()
        return
    if split not in ("train", "test"):
        raise UserError(f"--split {split}: expected train or test")
    rows = task_rows(
        find_task(name), data=data, split="test" if split == "test" else "train", limit=limit, seed=seed
    )
    text = "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"{len(rows)} prompts in {out}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from services.common.tasks.registry import find_task, task_names

    table = Table()
    for title in ("task", "what", "own prompts", "or from", "reward"):
        table.add_column(title, no_wrap=title == "task")
    for name in task_names():
        task = find_task(name)
        table.add_row(name, task.about, task.own_data, task.dataset, task.reward or "none")
    Console().print(table)
