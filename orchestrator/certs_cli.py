"""`trimtab certs`: its flags, and what to write into the services' files afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAMES = ("policy", "reference", "reward", "learner", "preference", "client")
_TOLD = """\
[tls]                                  # of each service
certificate = "{folder}/<name>.pem"
private_key = "{folder}/<name>.key"
client_ca = "{folder}/ca.pem"

ca_file = "{folder}/ca.pem"            # beside every address that it calls
certificate_file = "{folder}/<name>.pem"
private_key_file = "{folder}/<name>.key"
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("certs")(certs)


def certs(
    out: Annotated[Path, typer.Argument(help="Folder of the files.", show_default=False)],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Common name of a certificate; again for more.", show_default=", ".join(NAMES)),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or address that all of them serve under, too.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="How long certificates are valid.")] = 90,
) -> None:
    """A development authority, and a certificate for each service; again: new certificates of the same authority."""
    from services.common.errors import ConfigError

    try:
        from orchestrator.certificates import authority, issue
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("cryptography"):
            raise
        told = "trimtab certs needs cryptography: pip install 'trimtab-platform[certs]'"
        raise ConfigError(told) from None
    wanted = tuple(dict.fromkeys(name or NAMES))
    for one in wanted:
        if not one.replace("-", "").replace(".", "").isalnum() or one == "ca":
            raise ConfigError(f"--name {one!r}: expected letters, digits, dots and dashes, and not ca")
    signer, made = authority(out)
    for one in wanted:
        issue(signer, out, one, host or (), days=days)
    typer.echo(f"{'made' if made else 'kept'} {out / 'ca.pem'}; for {days} days: {', '.join(wanted)}\n")
    typer.echo(_TOLD.format(folder=out), nl=False)
