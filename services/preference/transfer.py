"""Owns `python -m services.preference.transfer`: JSONL files into a running service and out of it, over gRPC.

Knows the public client and records.py, nothing of the service's inside.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.preference.domain import Comparison, Item
    from services.preference.records import RecordReader, Written
    from trimtab.clients.preference import PreferenceClient

BATCH = 200
_DAY_SECONDS = 86_400.0
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True
)
Target = Annotated[str, typer.Option(help="host:port of the preference service.")]
Skip = Annotated[bool, typer.Option("--skip", help="Leave malformed rows out and count them.")]


@app.command("import")
def import_command(
    file: Path,
    target: Target = "127.0.0.1:50055",
    campaign: Annotated[str, typer.Option(help="Of rows that name none.")] = "",
    annotator: Annotated[str, typer.Option(help="Who chose, in rows that name nobody.")] = "import",
    skip: Skip = False,
) -> None:
    """Comparisons of a JSONL file, in TRL's schemas, into the service. Repeating it changes nothing."""
    from services.preference.records import RecordReader
    from trimtab.clients.preference import PreferenceClient

    with _one_line_errors(), PreferenceClient(target) as client:
        reader = RecordReader(file, campaign=campaign, annotator=annotator, skip_malformed=skip)
        rows, recorded = import_records(client, reader)
        print(f"{rows} rows read, {recorded} comparisons new, {reader.skipped} rows skipped", file=sys.stderr)
        if reader.skipped:
            print(f"first skipped: {reader.first_problem}", file=sys.stderr)


@app.command("export")
def export_command(
    file: Path,
    target: Target = "127.0.0.1:50055",
    campaign: Annotated[str, typer.Option(help="Empty: all.")] = "",
    text: Annotated[bool, typer.Option("--text", help="Prompts as text instead of messages.")] = False,
) -> None:
    """Comparisons with a winner into a JSONL file, which appears whole or not at all."""
    from trimtab.clients.preference import PreferenceClient

    with _one_line_errors(), PreferenceClient(target) as client:
        written = export_records(client, file, campaign=campaign, text=text)
        left_out = f"{written.ties} ties and {written.skipped} skipped ones left out"
        print(f"{written.rows} rows written, {left_out}", file=sys.stderr)


def import_records(client: PreferenceClient, reader: RecordReader) -> tuple[int, int]:
    """Send all records; how many rows were read, and how many comparisons were new to the service."""
    from services.preference.servicer import comparison_to, item_to

    rows = recorded = 0
    records = iter(reader)
    while batch := list(itertools.islice(records, BATCH)):
        client.upload([item_to(record.item) for record in batch])
        recorded += client.record([comparison_to(record.comparison) for record in batch])
        rows += len(batch)
    return rows, recorded


def export_records(
    client: PreferenceClient, file: Path, *, campaign: str = "", text: bool = False
) -> Written:
    """Write every comparison with a winner; counts of what was written and what was left out."""
    from services.preference.records import write_records

    aside = file.with_name(f".{file.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as out:
            written = write_records(out, _received(client, campaign), "text" if text else "conversational")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return written


def _received(client: PreferenceClient, campaign: str) -> Iterator[tuple[Comparison, Item]]:
    from services.preference.servicer import comparison_from, item_from

    answers = client.comparisons(campaign=campaign, include_items=True, timeout_seconds=_DAY_SECONDS)
    for answer in answers:
        yield comparison_from(answer.comparison, "comparison"), item_from(answer.item)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A mistake ends the program with one line and code 2, a failure with one line and code 1."""
    from services.common.errors import TrimtabError, UserError
    from trimtab.clients.errors import TrimtabClientError

    try:
        yield
    except (TrimtabError, TrimtabClientError, OSError) as error:
        print(f"transfer: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    app()
