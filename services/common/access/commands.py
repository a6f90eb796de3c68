"""The command line of keys files: new, list, revoke. Knows no service; a running one rereads the file by itself."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.common.access.keys_file import Entry, KeyEntry

File = Annotated[Path, typer.Option("--file", help="The keys file.", metavar="FILE")]
DEFAULT_FILE = Path("keys.toml")

app = typer.Typer(
    name="keys",
    help="API keys of a service: access.keys_file names the file.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; a second one of the name is for rotation.")],
    file: File = DEFAULT_FILE,
    scope: Annotated[list[str] | None, typer.Option(help="What it may do; score if none is given.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models it may use; all if none is given.")] = None,
    rows_per_minute: Annotated[int, typer.Option(help="Quota of the name; 0: none.")] = 0,
    expires_days: Annotated[int, typer.Option(help="Refused after so many days; 0: never.", min=0)] = 0,
) -> None:
    """Make a key, print it once on stdout, and write its hash into the file."""
    from services.common.access.keys import hash_of, id_of, new_key
    from services.common.access.keys_edit import added, edit, now

    key = new_key()
    entry = _entry(
        name=name,
        hash=hash_of(key),
        scopes=tuple(scope or ["score"]),
        models=tuple(model or []),
        rows_per_minute=rows_per_minute,
        expires=now() + timedelta(days=expires_days) if expires_days else None,
    )
    edit(file, added(entry))
    typer.echo(f"key {name} ({id_of(entry.hash)}) is in {file}; it is shown this once:", err=True)
    typer.echo(key)


@app.command("list")
def list_keys(file: File = DEFAULT_FILE) -> None:
    """What is in the file, a line for each key and certificate."""
    from services.common.access.keys import id_of
    from services.common.access.keys_file import read_keys

    content = read_keys(file)
    typer.echo(_row("name", "id", "scopes", "models", "rows/min", "expires"))
    for key in content.keys:
        typer.echo(_entry_row(key, id_of(key.hash)))
    for certificate in content.certificates:
        typer.echo(_entry_row(certificate, "certificate"))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose keys.")],
    file: File = DEFAULT_FILE,
    key_id: Annotated[str, typer.Option("--id", help="Only this one of them, see list.")] = "",
) -> None:
    """Take keys away. Running services refuse them from their next call on."""
    from services.common.access.keys_edit import edit, revoked

    edit(file, revoked(name, key_id))
    typer.echo(f"key {name} is revoked", err=True)


def _entry(**fields: object) -> KeyEntry:
    from pydantic import ValidationError

    from services.common.access.keys_file import KeyEntry
    from services.common.errors import ConfigError

    try:
        return KeyEntry.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = str(problem["loc"][0]).replace("_", "-")
        raise ConfigError(f"{field}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from None


def _entry_row(entry: Entry, key_id: str) -> str:
    return _row(
        entry.name,
        key_id,
        ",".join(entry.scopes),
        ",".join(entry.models) or "all",
        str(entry.rows_per_minute or "-"),
        entry.expires.isoformat() if entry.expires else "-",
    )


def _row(name: str, key_id: str, scopes: str, models: str, rows: str, expires: str) -> str:
    return f"{name:<20} {key_id:<12} {scopes:<16} {models:<16} {rows:>8} {expires}"


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. What went wrong is one line on stderr."""
    from services.common.errors import TrimtabError

    try:
        app(arguments, standalone_mode=True, prog_name="python -m services.common.access")
    except TrimtabError as error:
        typer.echo(f"keys: {' '.join(str(error).split())}", err=True)
        return 2
    except SystemExit as end:
        return int(end.code or 0)
    return 0
