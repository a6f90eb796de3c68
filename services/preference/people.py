"""Owns `python -m services.preference.people`: personal links made, listed, revoked. Works beside a running service.

The database is the one of the service's configuration file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.preference.config import PreferenceConfig
    from services.preference.database import Database

_DAY_SECONDS = 86_400.0
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True
)
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="One field of it, as the service takes it.", metavar="A.B=C")
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--set-env", help="One field of it, from a variable.", metavar="A.B=VARIABLE"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="The service's TOML file; without: its defaults.", metavar="FILE"),
]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who it is for; the name in every answer.")],
    role: Annotated[str, typer.Option(help="annotator, or owner, who sees the overview too.")] = "annotator",
    campaign: Annotated[
        str, typer.Option(help="Of an annotator: tasks of this one alone; empty: of all.")
    ] = "",
    expires_days: Annotated[
        float, typer.Option(help="The link is good for so long; 0: until revoked.", min=0)
    ] = 0,
    renew: Annotated[bool, typer.Option("--renew", help="Replace the link of someone who has one.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    variables: Variables = None,
) -> None:
    """Make a personal link and print it once, on stdout."""
    from services.preference import accounts

    with _opened(config, overrides, variables) as (database, spec):
        now = time.time()
        person = accounts.Person(
            name=name,
            role=role,  # type: ignore[arg-type]  # new_person checks it
            campaign=campaign,
            expires=now + expires_days * _DAY_SECONDS if expires_days else None,
        )
        token = database.transaction(
            lambda session: accounts.new_person(session, person, now=now, renew=renew)
        )
        print(f"{role} {name}; the link is shown this once:", file=sys.stderr)
        print(f"{_address(spec)}/join#{token}")


@app.command("list")
def list_people(config: Config = None, overrides: Overrides = None, variables: Variables = None) -> None:
    """Everybody, a line each."""
    from services.preference import accounts

    with _opened(config, overrides, variables) as (database, _):
        print(f"{'name':<24} {'role':<10} {'campaign':<20} link")
        for person in database.transaction(accounts.everybody):
            link = "revoked" if not person.link else "until revoked"
            if person.link and person.expires is not None:
                link = f"until {datetime.fromtimestamp(person.expires, UTC):%Y-%m-%d %H:%M} UTC"
            print(f"{person.name:<24} {person.role:<10} {person.campaign or 'all':<20} {link}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose link.")],
    config: Config = None,
    overrides: Overrides = None,
    variables: Variables = None,
) -> None:
    """Take a link away and end its sessions; the answers stay."""
    from services.preference import accounts

    with _opened(config, overrides, variables) as (database, _):
        database.transaction(lambda session: accounts.revoke(session, name))
        print(f"{name}: the link is revoked", file=sys.stderr)


def _address(spec: PreferenceConfig) -> str:
    if spec.web.public_url:
        return spec.web.public_url.rstrip("/")
    scheme = "http" if spec.tls is None else "https"
    return f"{scheme}://{spec.server.host}:{spec.server.http_port or 8055}"


@contextmanager
def _opened(
    config: Path | None, overrides: list[str] | None, variables: list[str] | None
) -> Iterator[tuple[Database, PreferenceConfig]]:
    """The database of the configuration. A mistake ends the program with one line and code 2."""
    from services.common.errors import TrimtabError, UserError
    from services.common.spec.load import load_toml
    from services.preference.config import PreferenceConfig
    from services.preference.database import Database

    try:
        spec = load_toml(config, PreferenceConfig, overrides or [], variables or [])
        database = Database(spec.database_url.get_secret_value())
        try:
            yield database, spec
        finally:
            database.close()
    except TrimtabError as error:
        print(f"people: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    app()
