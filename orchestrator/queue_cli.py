"""`trimtab queue`: what stands on a run's stages, and its dead letters; `users` is queue_users_cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import queue_users_cli
from orchestrator.local.options import Format

if TYPE_CHECKING:
    from orchestrator.local.letters import QueueOfRun

RunFolder = Annotated[
    Path | None,
    typer.Option("--out", help="The run's folder.", show_default="the one that runs, else the latest"),
]
Url = Annotated[str, typer.Option(help="The queue server, if not that of a run here.", show_default=False)]
RunUid = Annotated[str, typer.Option("--run-uid", help="The run there.", show_default=False)]
CaFile = Annotated[
    Path | None,
    typer.Option(help="Authorities to trust, PEM, of a rediss:// server.", show_default="the system's"),
]
CertificateFile = Annotated[
    Path | None, typer.Option(help="Our own certificate, where the server asks for one.", show_default=False)
]
PrivateKeyFile = Annotated[Path | None, typer.Option(help="Its key.", show_default=False)]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
queue_app = typer.Typer(help="Look into a run's stages and dead letters.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(queue_app, name="queue")
    queue_users_cli.register(queue_app)


def _queue(
    out: Path | None, url: str, run_uid: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> QueueOfRun:
    from orchestrator.local.letters import QueueOfRun
    from services.common.stages.tls_files import TlsFiles

    return QueueOfRun.named(out, url, run_uid, TlsFiles(ca, certificate, key))


@queue_app.command("list")
def queue_list(
    out: RunFolder = None,
    url: Url = "",
    run_uid: RunUid = "",
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    private_key_file: PrivateKeyFile = None,
    output: Output = Format.TEXT,
) -> None:
    """Each stage: groups that wait, groups that are worked on, workers."""
    from orchestrator.local.letters import show_stages

    show_stages(_queue(out, url, run_uid, ca_file, certificate_file, private_key_file), output)


@queue_app.command("dead")
def queue_dead(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 20,
    out: RunFolder = None,
    url: Url = "",
    run_uid: RunUid = "",
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    private_key_file: PrivateKeyFile = None,
    output: Output = Format.TEXT,
) -> None:
    """Dead letters: groups that nobody could digest, and why."""
    from orchestrator.local.letters import show_dead

    show_dead(_queue(out, url, run_uid, ca_file, certificate_file, private_key_file), limit, output)


@queue_app.command("requeue")
def queue_requeue(
    letter: Annotated[
        list[str], typer.Argument(help="Ids as `trimtab queue dead` shows.", show_default=False)
    ],
    out: RunFolder = None,
    url: Url = "",
    run_uid: RunUid = "",
    ca_file: CaFile = None,
    certificate_file: CertificateFile = None,
    private_key_file: PrivateKeyFile = None,
) -> None:
    """Put dead letters back on the stage they came from, attempts at 0.

    The learner trains on what it had given up; what it has admitted again since comes back, with the reason.
    """
    from orchestrator.local.letters import requeue

    requeue(_queue(out, url, run_uid, ca_file, certificate_file, private_key_file), letter)
