"""Owns `python -m services.preference.transfer`: files into a running service and out of it, over gRPC.

Knows the public client, records.py and files.py, nothing of the service's inside.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from services.preference.domain import Comparison, Item
    from services.preference.records import Form, Record, RecordReader, Written
    from trimtab.clients.preference import PreferenceClient

BATCH = 200
_DAY_SECONDS = 86_400.0
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True
)
Target = Annotated[str, typer.Option(help="host:port of the preference service.")]
Key = Annotated[
    Path | None, typer.Option(help="File with the API key; else TRIMTAB_KEY.", show_default=False)
]
Authority = Annotated[
    Path | None,
    typer.Option(help="Who signed the service's certificate; none: plaintext.", show_default=False),
]
Certificate = Annotated[Path | None, typer.Option(help="Of whoever asks (mTLS).", show_default=False)]
PrivateKey = Annotated[Path | None, typer.Option(help="Of that certificate.", show_default=False)]
Skip = Annotated[bool, typer.Option("--skip-bad-rows", "--skip", help="Leave bad rows out and count them.")]
Source = Annotated[
    str,
    typer.Argument(
        help=".jsonl, .json (also .gz), .parquet, a saved data set's folder, datasets:NAME?split=…"
    ),
]


@app.command("import")
def import_command(
    source: Source,
    target: Target = "127.0.0.1:50055",
    campaign: Annotated[str, typer.Option(help="Of rows that name none.")] = "",
    annotator: Annotated[str, typer.Option(help="Who chose, in rows that name nobody.")] = "import",
    skip_bad_rows: Skip = False,
    key_file: Key = None,
    ca_file: Authority = None,
    certificate_file: Certificate = None,
    private_key_file: PrivateKey = None,
) -> None:
    """Comparisons, rankings and best-of choices of a source into the service. Repeating it changes nothing."""
    from services.preference.records import RecordReader

    with _connected(target, key_file, ca_file, certificate_file, private_key_file) as client:
        reader = RecordReader(source, campaign=campaign, annotator=annotator, skip_bad_rows=skip_bad_rows)
        compared, new = import_records(client, reader)
        print(reader.report, file=sys.stderr)
        print(f"{compared} comparisons, {new} of them new to the service", file=sys.stderr)


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Ends with .jsonl, .jsonl.gz or .parquet.")],
    target: Target = "127.0.0.1:50055",
    campaign: Annotated[str, typer.Option(help="Empty: all.")] = "",
    form: Annotated[
        Literal["conversational", "text", "implicit", "rankings"],
        typer.Option(
            help="TRL's schema: messages, text, or messages with the prompt in both sides; "
            "rankings: whole, with ties."
        ),
    ] = "conversational",
    text: Annotated[bool, typer.Option("--text", help="The same as --form text.")] = False,
    confidence_margin: Annotated[
        float,
        typer.Option(help="TRL's column margin, where nobody gave one: so much for full confidence.", min=0),
    ] = 0.0,
    key_file: Key = None,
    ca_file: Authority = None,
    certificate_file: Certificate = None,
    private_key_file: PrivateKey = None,
) -> None:
    """Comparisons with a winner into a file, which appears whole or not at all."""
    with _connected(target, key_file, ca_file, certificate_file, private_key_file) as client:
        written = export_records(
            client,
            file,
            campaign=campaign,
            form="text" if text else form,
            confidence_margin=confidence_margin,
        )
        left_out = f"{written.ties} ties and {written.skipped} skipped ones left out"
        print(f"{written.rows} rows written, {left_out}", file=sys.stderr)


@app.command("targets")
def targets_command(
    file: Annotated[Path, typer.Argument(help="Ends with .jsonl, .jsonl.gz or .parquet.")],
    target: Target = "127.0.0.1:50055",
    campaign: Annotated[str, typer.Option(help="Empty: all.")] = "",
    key_file: Key = None,
    ca_file: Authority = None,
    certificate_file: Certificate = None,
    private_key_file: PrivateKey = None,
) -> None:
    """Every rated answer with a scalar target: its rating, mean 0 within its item, standard deviation 1 over all."""
    with _connected(target, key_file, ca_file, certificate_file, private_key_file) as client:
        print(f"{export_targets(client, file, campaign=campaign)} rows written", file=sys.stderr)


def import_records(client: PreferenceClient, reader: RecordReader) -> tuple[int, int]:
    """Send all records; how many comparisons were read, and how many of them were new to the service."""
    compared = new = 0
    batch: list[Record] = []
    waiting = 0
    for record in reader:
        batch.append(record)
        waiting += len(record.comparisons)
        if waiting >= BATCH:
            new += _send(client, batch)
            compared += waiting
            batch, waiting = [], 0
    return compared + waiting, new + (_send(client, batch) if batch else 0)


def _send(client: PreferenceClient, batch: Sequence[Record]) -> int:
    from services.preference.servicer import comparison_to, item_to

    client.upload([item_to(record.item) for record in batch])
    said = [comparison for record in batch for comparison in record.comparisons]
    return client.record([comparison_to(comparison) for comparison in said], made_elsewhere=True)


def export_records(
    client: PreferenceClient,
    file: Path,
    *,
    campaign: str = "",
    form: Form = "conversational",
    confidence_margin: float = 0.0,
) -> Written:
    """Write every comparison with a winner; counts of what was written and what was left out.

    TRL's schemas have a column `margin` where any comparison has one, or confidence is to make one; it is 0 where
    neither says anything.
    """
    from services.preference.files import row_writer
    from services.preference.records import write_records

    def margin_of(comparison: Comparison) -> float:
        if comparison.margin is not None:
            return comparison.margin
        return confidence_margin * (comparison.confidence or 0.0)

    margins = confidence_margin > 0 or any(
        answer.comparison.HasField("margin")
        for answer in client.comparisons(campaign=campaign, timeout_seconds=_DAY_SECONDS)
    )
    with row_writer(file) as out:
        return write_records(out, _received(client, campaign), form, margin_of=margin_of if margins else None)


def export_targets(client: PreferenceClient, file: Path, *, campaign: str = "") -> int:
    """Write the rated answers with their targets; how many."""
    from services.preference.files import row_writer
    from services.preference.ratings import Rating
    from services.preference.targets import target_rows
    from trimtab.preference.v1.preference_pb2 import RATING_SUBJECT_CANDIDATE

    found = client.ratings(campaign=campaign, subject=RATING_SUBJECT_CANDIDATE, timeout_seconds=_DAY_SECONDS)
    ratings = [Rating(one.subject, one.rating, one.low, one.high, one.comparisons) for one in found]
    items = {item.item_id: item for _, item in _received(client, campaign)}
    rows = 0
    with row_writer(file) as out:
        for row in target_rows(items.values(), ratings):
            out.write(row)
            rows += 1
    return rows


def _received(client: PreferenceClient, campaign: str) -> Iterator[tuple[Comparison, Item]]:
    from services.preference.servicer import comparison_from, item_from

    answers = client.comparisons(campaign=campaign, include_items=True, timeout_seconds=_DAY_SECONDS)
    for answer in answers:
        yield comparison_from(answer.comparison, "comparison"), item_from(answer.item)


@contextmanager
def _connected(
    target: str, key: Path | None, authority: Path | None, certificate: Path | None, private_key: Path | None
) -> Iterator[PreferenceClient]:
    """A client of the service, and its errors told as below."""
    from services.common.errors import ConfigError
    from trimtab.clients.preference import PreferenceClient

    with _one_line_errors():
        try:
            client = PreferenceClient(
                target,
                key_file=key,
                ca_file=authority,
                certificate_file=certificate,
                private_key_file=private_key,
            )
        except ValueError as error:
            raise ConfigError(f"{target}: {error}") from None
        with client:
            yield client


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
