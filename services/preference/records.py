"""Owns how recorded preferences of any format become items and comparisons, and how those become TRL's rows.

Reading files and their formats: services/common/comparisons. Knows no wire and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from services.preference.statements import ranking_id_of, row_item_id, statement_row, statements

Form = Literal["conversational", "text", "implicit", "rankings"]


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

    Iterating raises InvalidInput "file:line: field: what was expected" for a bad row, for one in which an annotator
    contradicts an earlier choice, and for one that gives an earlier item_id to another prompt or other answers; with
    `skip_bad_rows` they are counted in `report`, as everything is that deserves a word. `campaign` and `annotator` are
    for rows that name none.
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
        self._asked: dict[str, tuple[str, str]] = {}

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
        self._check_item(record.item, row.origin.place)
        for comparison in record.comparisons:
            said = self._said.setdefault(comparison.task_id, {})
            preferred, place = said.setdefault(annotator, (comparison.preferred, row.origin.place))
            if preferred != comparison.preferred:
                raise Malformed("row", f"expected the same choice as {place} for the same two texts")
        return record

    def _check_item(self, item: Item, place: str) -> None:
        """One id, one question: a label of the second would land on the first."""
        question = _question_id(item.prompt, [one.text for one in item.candidates], item.campaign)
        if question == item.item_id:
            return
        asked, before = self._asked.setdefault(item.item_id, (question, place))
        if asked != question:
            raise Malformed("item_id", f"expected the same prompt, answers and campaign as {before}")


def _question_id(prompt: tuple[Message, ...], texts: Iterable[str], campaign: str) -> str:
    """The id of an item that has no name: each campaign has items, and so labels, of its own."""
    question = content_id(repr(prompt), *sorted(texts))
    return content_id(question, campaign) if campaign else question


def to_record(row: common.Record, *, campaign: str, annotator: str) -> Record:
    """The item and comparisons of one row; ids that it does not give are digests of its content. Raises Malformed.

    The pairs of a ranking of three and more share a ranking_id; those of a best-of row are no ranking.
    """
    origin = row.origin
    prompt = tuple(Message(message.role, message.content) for message in row.prompt)
    # A best-of row may repeat a text; by id, so that neither place nor order tells which one was chosen.
    texts = sorted(set(row.answers), key=content_id)
    if len(texts) > MAX_CANDIDATES:
        raise Malformed("row", f"expected at most {MAX_CANDIDATES} answers, got {len(texts)}")
    sources = dict(zip(row.answers[::-1], row.sources[::-1], strict=True))
    campaign = origin.campaign or campaign
    item = Item(
        item_id=origin.item_id or _question_id(prompt, texts, campaign),
        prompt=prompt,
        candidates=tuple(
            Candidate(candidate_id=content_id(text), text=text, source=sources[text]) for text in texts
        ),
        campaign=campaign,
        prompt_id=origin.group,
    )
    said = dict.fromkeys(row.wins(), Choice.FIRST) | dict.fromkeys(row.ties(), Choice.TIE)
    # A best-of row may say the same of two copies of a text.
    pairs = {tuple(content_id(row.answers[n]) for n in pair): choice for pair, choice in said.items()}
    tasks = {pair: make_task_id(item.item_id, *pair) for pair in pairs}
    ranked = isinstance(row, common.Ranking) and len(texts) > 2
    comparisons = [
        Comparison(
            task_id=tasks[pair],
            item_id=item.item_id,
            annotator=annotator,
            first_candidate_id=pair[0],
            second_candidate_id=pair[1],
            choice=choice,
            confidence=origin.confidence,
            margin=row.margin if isinstance(row, common.Comparison) else None,
            ranking_id=ranking_id_of(tasks.values(), annotator) if ranked else "",
        )
        for pair, choice in pairs.items()
    ]
    return Record(item, tuple(comparisons))


def format_record(
    comparison: Comparison, item: Item, form: Form = "conversational", *, margin: float | None = None
) -> dict[str, Any]:
    """One row of a comparison with a winner, in a schema of TRL's. InvalidInput for `text` of several messages.

    margin: for the column of that name, which is left out where there is none.
    """
    chosen = comparison.preferred
    rejected = ({comparison.first_candidate_id, comparison.second_candidate_id} - {chosen}).pop()
    texts = [item.candidate(candidate_id).text for candidate_id in (chosen, rejected)]
    pair = (comparison.first_candidate_id, comparison.second_candidate_id)
    sources = [item.candidate(candidate_id).source for candidate_id in (chosen, rejected)]
    columns = {
        "item_id": row_item_id(item, pair),
        "prompt_id": item.prompt_id,
        "campaign": item.campaign,
        "annotator": comparison.annotator,
        "confidence": comparison.confidence,
        "chosen_source": sources[0],
        "rejected_source": sources[1],
    }
    if margin is not None:
        columns["margin"] = margin
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
    out: RowWriter,
    rows: Iterable[tuple[Comparison, Item]],
    form: Form = "conversational",
    *,
    margin_of: Callable[[Comparison], float] | None = None,
) -> Written:
    """One row per comparison with a winner; ties and skipped ones, for which TRL has none, are counted.

    `rankings` is no schema of TRL's: a row for each statement, ties of two texts too. margin_of: the column `margin` of
    TRL's schemas, which all rows of a file have or none.
    """
    written = Written()
    told = _told(rows, written)
    if form == "rankings":
        for together, item in statements(told):
            out.write(statement_row(together, item))
            written.rows += 1
        return written
    for comparison, item in told:
        if not has_winner(comparison, item):
            written.ties += 1
        else:
            margin = None if margin_of is None else margin_of(comparison)
            out.write(format_record(comparison, item, form, margin=margin))
            written.rows += 1
    return written


def has_winner(comparison: Comparison, item: Item) -> bool:
    """Whether one text was preferred to another: of two copies of one text none is the better one."""
    decided = comparison.choice in (Choice.FIRST, Choice.SECOND)
    return decided and not item.alike(comparison.first_candidate_id, comparison.second_candidate_id)


def _told(rows: Iterable[tuple[Comparison, Item]], written: Written) -> Iterator[tuple[Comparison, Item]]:
    """Those that say something of two texts; the others are counted, copies of one text as ties."""
    for comparison, item in rows:
        if comparison.choice in (Choice.SKIP, Choice.FLAG):
            written.skipped += 1
        elif item.alike(comparison.first_candidate_id, comparison.second_candidate_id):
            written.ties += 1
        else:
            yield comparison, item
