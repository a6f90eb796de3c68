"""`trimtab queue users`: its flags, and what to do with the files afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STAGES = ("policy", "reference", "reward")
_TOLD = """\
{out}/users.acl         for the server: aclfile, or these lines in the one that it has, then ACL LOAD
{out}/urls/<service>    queue.url of {services}
"""


def register(queue_app: typer.Typer) -> None:
    """Add the command to `trimtab queue`."""
    queue_app.command("users")(users)


def users(
    run_uid: Annotated[
        str, typer.Argument(help="The run's uid; ending in *: all whose uid begins so.", show_default=False)
    ],
    server: Annotated[
        str, typer.Option(help="rediss://HOST:PORT or redis://HOST:PORT, without user.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the files.", show_default=False)],
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="A stage of the slip, in its order; again for more.", show_default=", ".join(STAGES)
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="The server has users already: write the run's alone.")
    ] = False,
) -> None:
    """A user for each service with its commands and keys alone; again: the same passwords, the rights anew."""
    from orchestrator.queue_files import write_users

    names = write_users(run_uid, server, out, stage or STAGES, shared=shared)
    typer.echo(_TOLD.format(out=out, services=", ".join(names)), nl=False)
