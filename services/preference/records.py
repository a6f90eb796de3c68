"""Owns how recorded preferences of any format become items and comparisons, and how those become TRL's rows.

Reading files and their formats: services/common/comparisons. Knows no wire and no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from services.common import comparisons as common
from services.common.comparisons.fields import Malformed
from services.common.errors import InvalidInput
from services.preference.domain import (
    MAX_CANDIDATES,
    Candidate,
    Choice,
    Comparison,
    Item,
    Message,
    content_id,
    make_task_id,
)

Form = Literal["conversational", "text", "implicit"]


@dataclass(frozen=True, slots=True)
class Record:
    """What one row says: an item, and a comparison for each pair of its candidates that was decided or tied."""

    item: Item
    comparisons: tuple[Comparison, ...]


@dataclass(slots=True)
class Written:
    """What an export wrote, and what the schema cannot say."""

    rows: int = 0
    ties: int = 0
    skipped: int = 0


class RowWriter(Protocol):
    """Takes rows one by one; files.py has some."""

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""


class RecordReader:
    """The records of a source (services.common.comparisons.read says which), read as they are asked for.

    Iterating raises InvalidInput "file:line: field: what was expected" for a bad row, and for one in which an annotator
    contradicts an earlier choice; with `skip_bad_rows` they are counted in `report`, as everything is that deserves a
    word. `campaign` and `annotator` are for rows that name none.
    """

    def __init__(
        self,
        source: common.Source,
        *,
        campaign: str = "",
        annotator: str = "import",
        skip_bad_rows: bool = False,
    ) -> None:
        """NotFound where there is no such file."""
        self._reading = common.read(source, skip_bad_rows=skip_bad_rows)
        self._campaign = campaign
        self._annotator = annotator
        self._said: dict[str, dict[str, tuple[str, str]]] = {}

    @property
    def report(self) -> common.Report:
        """What was found so far."""
        return self._reading.report

    def __iter__(self) -> Iterator[Record]:
        for row in self._reading:
            try:
                record = self._record(row)
            except Malformed as problem:
                self._reading.reject(row, problem)
            else:
                yield record

    def _record(self, row: common.Record) -> Record:
        annotator = row.origin.annotator or self._annotator
        record = to_record(row, campaign=self._campaign, annotator=annotator)
        others = [self._said.get(comparison.task_id, {}) for comparison in record.comparisons]
        if any(said and annotator not in said for said in others):
            # The service takes one answer to a task unless told otherwise; another annotator's is kept beside it.
            again = content_id(record.item.item_id, annotator)
            record = to_record(row, campaign=self._campaign, annotator=annotator, item_id=again)
        for comparison in record.comparisons:
            said = self._said.setdefault(comparison.task_id, {})
            preferred, place = said.setdefault(annotator, (comparison.preferred, row.origin.place))
            if preferred != comparison.preferred:
                raise Malformed("row", f"expected the same choice as {place} for the same two texts")
        return record


def to_record(row: common.Record, *, campaign: str, annotator: str, item_id: str = "") -> Record:
    """The item and comparisons of one row; ids that it does not give are digests of its content. Raises Malformed."""
    origin = row.origin
    prompt = tuple(Message(message.role, message.content) for message in row.prompt)
    # A best-of row may repeat a text; by id, so that neither place nor order tells which one was chosen.
    texts = sorted(set(row.answers), key=content_id)
    if len(texts) > MAX_CANDIDATES:
        raise Malformed("row", f"expected at most {MAX_CANDIDATES} answers, got {len(texts)}")
    sources = dict(zip(row.answers[::-1], row.sources[::-1], strict=True))
    item = Item(
        item_id=item_id or origin.item_id or content_id(repr(prompt), *sorted(texts)),
        prompt=prompt,
        candidates=tuple(
            Candidate(candidate_id=content_id(text), text=text, source=sources[text]) for text in texts
        ),
        campaign=origin.campaign or campaign,
        prompt_id=origin.prompt_id or content_id(repr(prompt)),
    )
    said = dict.fromkeys(row.wins(), Choice.FIRST) | dict.fromkeys(row.ties(), Choice.TIE)
    comparisons = {
        make_task_id(item.item_id, *(ids := [content_id(row.answers[n]) for n in pair])): Comparison(
            task_id=make_task_id(item.item_id, *ids),
            item_id=item.item_id,
            annotator=annotator,
            first_candidate_id=ids[0],
            second_candidate_id=ids[1],
            choice=choice,
            confidence=origin.confidence,
        )
        for pair, choice in said.items()
    }
    return Record(item, tuple(comparisons.values()))


def format_record(comparison: Comparison, item: Item, form: Form = "conversational") -> dict[str, Any]:
    """One row of a comparison with a winner. InvalidInput for `text` of a prompt of several messages."""
    chosen = comparison.preferred
    rejected = ({comparison.first_candidate_id, comparison.second_candidate_id} - {chosen}).pop()
    texts = [item.candidate(candidate_id).text for candidate_id in (chosen, rejected)]
    # A row is read back as an item of two candidates: those of one larger item need names of their own.
    item_id = item.item_id if len(item.candidates) == 2 else content_id(item.item_id, *sorted(texts))
    sources = [item.candidate(candidate_id).source for candidate_id in (chosen, rejected)]
    columns = {
        "item_id": item_id,
        "prompt_id": item.prompt_id,
        "campaign": item.campaign,
        "annotator": comparison.annotator,
        "confidence": comparison.confidence,
        "chosen_source": sources[0],
        "rejected_source": sources[1],
    }
    if form == "text":
        if len(item.prompt) != 1:
            raise InvalidInput(
                f"item {item.item_id}: a prompt of {len(item.prompt)} messages has no text form; "
                "expected the conversational one"
            )
        return {"prompt": item.prompt[0].content, "chosen": texts[0], "rejected": texts[1], **columns}
    prompt = [{"role": message.role, "content": message.content} for message in item.prompt]
    chosen_message, rejected_message = ([{"role": "assistant", "content": text}] for text in texts)
    if form == "implicit":
        return {"chosen": prompt + chosen_message, "rejected": prompt + rejected_message, **columns}
    return {"prompt": prompt, "chosen": chosen_message, "rejected": rejected_message, **columns}


def write_records(
    out: RowWriter, rows: Iterable[tuple[Comparison, Item]], form: Form = "conversational"
) -> Written:
    """One row per comparison with a winner; ties and skipped ones, for which TRL has none, are counted."""
    written = Written()
    for comparison, item in rows:
        if comparison.choice is Choice.TIE:
            written.ties += 1
        elif comparison.choice in (Choice.SKIP, Choice.FLAG):
            written.skipped += 1
        else:
            out.write(format_record(comparison, item, form))
            written.rows += 1
    return written
