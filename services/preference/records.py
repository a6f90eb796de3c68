"""Owns JSONL files of comparisons in TRL's preference schemas, in and out. Knows no wire and no database.

Optional columns, kept both ways: item_id, prompt_id, campaign, annotator. What rows look like: rows.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from services.common.errors import InvalidInput, NotFound
from services.preference.domain import Candidate, Choice, Comparison, Item, content_id, make_task_id
from services.preference.rows import Malformed, column, parse_json, parse_pair

Form = Literal["conversational", "text"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row: an item of two candidates and which of them was chosen."""

    item: Item
    comparison: Comparison


@dataclass(slots=True)
class Written:
    """What an export wrote, and what the schema cannot say."""

    rows: int = 0
    ties: int = 0
    skipped: int = 0


class RecordReader:
    """The records of a JSONL file, read as they are asked for.

    A malformed row, or one that contradicts an earlier one, raises InvalidInput "file:line: field: what was
    expected"; with `skip_malformed` it is counted in `skipped`, and `first_problem` keeps the first text.
    """

    def __init__(
        self,
        path: Path,
        *,
        campaign: str = "",
        annotator: str = "import",
        skip_malformed: bool = False,
    ) -> None:
        """`campaign` and `annotator` are for rows that name none. NotFound where there is no such file."""
        if not path.is_file():
            raise NotFound(f"{path}: no such file")
        self._path = path
        self._defaults = {"campaign": campaign, "annotator": annotator}
        self._skip = skip_malformed
        self.skipped = 0
        self.first_problem = ""

    def __iter__(self) -> Iterator[Record]:
        seen: dict[str, tuple[str, int]] = {}
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = parse_record(parse_json(line), self._defaults)
                    _check_consistent(record.comparison, number, seen)
                except Malformed as problem:
                    self._malformed(number, problem)
                else:
                    yield record

    def _malformed(self, number: int, problem: Malformed) -> None:
        text = f"{self._path}:{number}: {problem.field}: {problem.expected}"
        if not self._skip:
            raise InvalidInput(text, {problem.field: problem.expected}) from None
        self.skipped += 1
        self.first_problem = self.first_problem or text


def _check_consistent(comparison: Comparison, line: int, seen: dict[str, tuple[str, int]]) -> None:
    """A pair has one answer; an equal row again is no harm. `seen`: task to preferred candidate and line."""
    preferred, where = seen.setdefault(comparison.task_id, (comparison.preferred, line))
    if preferred != comparison.preferred:
        raise Malformed("chosen", f"expected the same choice as line {where} for the same two texts")


def parse_record(row: Mapping[str, Any], defaults: Mapping[str, str]) -> Record:
    """The record of one row; ids that it does not give are digests of its content. Raises Malformed."""
    pair = parse_pair(row)
    chosen, rejected = pair.chosen, pair.rejected
    if chosen == rejected:
        raise Malformed("rejected", "expected another text than chosen")
    prompt = pair.prompt
    item_id = column(row, "item_id", content_id(repr(prompt), *sorted((chosen, rejected))))
    candidates = {text: Candidate(candidate_id=content_id(text), text=text) for text in (chosen, rejected)}
    item = Item(
        item_id=item_id,
        prompt=prompt,
        # By id, so that neither place nor order tells which one was chosen.
        candidates=tuple(sorted(candidates.values(), key=lambda candidate: candidate.candidate_id)),
        campaign=column(row, "campaign", defaults.get("campaign", "")),
        prompt_id=column(row, "prompt_id", content_id(repr(prompt))),
    )
    first, second = candidates[chosen].candidate_id, candidates[rejected].candidate_id
    comparison = Comparison(
        task_id=make_task_id(item_id, first, second),
        item_id=item_id,
        annotator=column(row, "annotator", defaults.get("annotator", "import")),
        first_candidate_id=first,
        second_candidate_id=second,
        choice=Choice.FIRST,
    )
    return Record(item, comparison)


def format_record(comparison: Comparison, item: Item, form: Form = "conversational") -> dict[str, Any]:
    """One row of a comparison with a winner. InvalidInput for `text` of a prompt of several messages."""
    chosen = comparison.preferred
    rejected = ({comparison.first_candidate_id, comparison.second_candidate_id} - {chosen}).pop()
    texts = [item.candidate(candidate_id).text for candidate_id in (chosen, rejected)]
    # A row is read back as an item of two candidates: those of one larger item need names of their own.
    item_id = item.item_id if len(item.candidates) == 2 else content_id(item.item_id, *sorted(texts))
    columns = {
        "item_id": item_id,
        "prompt_id": item.prompt_id,
        "campaign": item.campaign,
        "annotator": comparison.annotator,
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
    return {"prompt": prompt, "chosen": chosen_message, "rejected": rejected_message, **columns}


def write_records(
    out: TextIO, rows: Iterable[tuple[Comparison, Item]], form: Form = "conversational"
) -> Written:
    """One line per comparison with a winner; ties and skipped ones, for which TRL has none, are counted."""
    written = Written()
    for comparison, item in rows:
        if comparison.choice is Choice.TIE:
            written.ties += 1
        elif comparison.choice in (Choice.SKIP, Choice.FLAG):
            written.skipped += 1
        else:
            out.write(json.dumps(format_record(comparison, item, form), ensure_ascii=False) + "\n")
            written.rows += 1
    return written
