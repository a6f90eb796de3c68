"""Owns reading a source to its end: bad rows raised or counted, and what else deserves a word in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.common.comparisons.fields import Fault, Malformed
from services.common.comparisons.records import Record, fingerprint, pair_key
from services.common.comparisons.schemas import parse_row
from services.common.comparisons.sources import Rows, Source, rows
from services.common.errors import InvalidInput


@dataclass(slots=True)
class Report:
    """What a reading found so far.

    `rows`: read, blank lines aside; `records`: of them given out. `faults`: bad rows by fault. Records that are given
    out nevertheless: `duplicates` (prompt, answers, choice and annotator as in an earlier row), `disagreements` (an
    earlier row prefers the other one of the same two answers), `empty_answers` (records with an answer of nothing but
    white space: a real policy's answer may be empty). `first`: the first of each, "file:line: field: what".
    """

    rows: int = 0
    records: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    duplicates: int = 0
    disagreements: int = 0
    empty_answers: int = 0
    first: dict[str, str] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        """Rows that were left out."""
        return self.faults.total()

    @property
    def first_bad(self) -> str:
        """The first bad row's place, field and what was expected; empty where there is none."""
        return next((self.first[fault] for fault in self.first if fault in self.faults), "")

    def lines(self) -> list[str]:
        """For people: the counts, then one line for each kind of finding with its first place."""
        found: dict[str, int] = {str(fault): count for fault, count in self.faults.items()}
        found |= {
            "duplicates": self.duplicates,
            "disagreements": self.disagreements,
            "empty answers": self.empty_answers,
        }
        head = f"{self.rows} rows read, {self.records} used, {self.bad_rows} bad ones left out"
        return [head, *(f"{name}: {n}, first {self.first[name]}" for name, n in found.items() if n)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Reading(Iterator[Record]):
    """The records of a source, parsed as they are asked for; `report` grows along."""

    def __init__(self, source: Rows, *, skip_bad_rows: bool = False, drop_duplicates: bool = False) -> None:
        self.report = Report()
        self._source = source
        self._skip = skip_bad_rows
        self._drop = drop_duplicates
        self._seen: set[str] = set()
        self._preferred: dict[str, bool] = {}

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> Record:
        for place, row in self._source:
            self.report.rows += 1
            try:
                if isinstance(row, Malformed):
                    raise row
                record = parse_row(row, place)
            except Malformed as problem:
                self._bad(place, problem)
                continue
            if self._notice(record) and self._drop:
                continue
            self.report.records += 1
            return record
        raise StopIteration

    def reject(self, record: Record, problem: Malformed) -> None:
        """Count a record as bad that only its user can see is bad; raises InvalidInput unless bad rows are skipped."""
        self.report.records -= 1
        self._bad(record.origin.place, problem)

    def _bad(self, place: str, problem: Malformed) -> None:
        text = f"{place}: {problem.field}: {problem.expected}"
        if not self._skip:
            raise InvalidInput(text, {problem.field: problem.expected}) from None
        self.report.faults[problem.fault] += 1
        self.report.first.setdefault(problem.fault, text)

    def _notice(self, record: Record) -> bool:
        """Count what deserves a word; whether the record was there before."""
        report, place = self.report, record.origin.place
        empty = [number for number, said in enumerate(record.answers) if not said.strip()]
        if empty:
            report.empty_answers += 1
            report.first.setdefault("empty answers", f"{place}: answer {empty[0] + 1}")
        key = fingerprint(record.prompt, record.answers, record.wins(), record.origin.annotator)
        again = key in self._seen
        self._seen.add(key)
        if again:
            report.duplicates += 1
            report.first.setdefault("duplicates", place)
        elif self._disagrees(record):
            report.disagreements += 1
            report.first.setdefault("disagreements", place)
        return again

    def _disagrees(self, record: Record) -> bool:
        found = False
        for better, worse in record.wins():
            lower = record.answers[better] < record.answers[worse]
            found |= self._preferred.setdefault(pair_key(record, better, worse), lower) != lower
        return found


def read(source: Source, *, skip_bad_rows: bool = False, drop_duplicates: bool = False) -> Reading:
    """Comparisons, rankings and best-of choices of a source, whichever known format each row has.

    source: a file (.jsonl, .json, .jsonl.gz, .json.gz, .parquet), a folder of `datasets`' save_to_disk,
    "datasets:NAME?split=train&name=…&data_dir=…&data_files=…&revision=…", or mappings (a `datasets.Dataset`, a list).
    Raises NotFound for a file that is not there, InvalidInput for one that cannot be read, ConfigError where the
    extra `data` is missing, and, while reading, InvalidInput "place: field: what was expected" for a bad row unless
    `skip_bad_rows`. `drop_duplicates` leaves repeated rows out; they are counted either way.
    """
    return Reading(rows(source), skip_bad_rows=skip_bad_rows, drop_duplicates=drop_duplicates)
