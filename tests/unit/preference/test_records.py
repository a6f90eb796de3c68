"""JSONL in TRL's schemas: every form read, malformed rows named, what is written can be read again."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidInput, NotFound
from services.preference.domain import Candidate, Choice, Comparison, Item, Message
from services.preference.records import Record, RecordReader, Written, format_record, write_records


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(tmp_path: Path, *rows: object, **options: Any) -> list[Record]:
    return list(RecordReader(write(tmp_path, *rows), **options))


def chosen(record: Record) -> str:
    return record.item.candidate(record.comparison.preferred).text


SAME: list[dict[str, Any]] = [
    {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    {"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
    {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
]


@pytest.mark.parametrize("row", SAME)
def test_every_schema_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    """Explicit and implicit prompts, messages and text: the same record, with the same ids."""
    (record,) = read(tmp_path, row)
    assert record == read(tmp_path, SAME[0])[0]
    assert record.item.prompt == (Message("user", "hi"),)
    assert sorted(candidate.text for candidate in record.item.candidates) == ["no", "yes"]
    assert chosen(record) == "yes"
    assert record.comparison.annotator == "import"


def test_the_place_of_a_candidate_does_not_tell_the_choice(tmp_path: Path) -> None:
    """Swapping chosen and rejected gives the same item, and the other choice."""
    one = read(tmp_path, {"prompt": "hi", "chosen": "yes", "rejected": "no"})[0]
    other = read(tmp_path, {"prompt": "hi", "chosen": "no", "rejected": "yes"})[0]
    assert one.item == other.item
    assert (chosen(one), chosen(other)) == ("yes", "no")


def test_several_turns(tmp_path: Path) -> None:
    """All turns before the last answer are the prompt, in both implicit forms."""
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    (record,) = read(tmp_path, {"chosen": text + "good", "rejected": text + "bad"})
    assert record.item.prompt == (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert chosen(record) == "good"


def test_optional_columns(tmp_path: Path) -> None:
    """Ids, campaign and annotator of the row win over the defaults; a number is taken as a name."""
    row = SAME[1] | {"item_id": "i", "prompt_id": 7, "annotator": "ann"}
    (record,) = read(tmp_path, row, campaign="spring", annotator="bob")
    assert (record.item.item_id, record.item.prompt_id, record.item.campaign) == ("i", "7", "spring")
    assert record.comparison.annotator == "ann"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "row: expected one JSON object"),
        ("[1]", "row: expected a JSON object, got a list"),
        ("[" * 100_000, "row: expected one JSON object"),
        ({"prompt": "a", "chosen": "b"}, "rejected: expected text or a list of messages, there is none"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected: expected text, got null"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected: expected another text than chosen"),
        (
            {"prompt": 1, "chosen": "b", "rejected": "c"},
            "prompt: expected text or a list of messages, got a number",
        ),
        (
            {"prompt": [], "chosen": "b", "rejected": "c"},
            "prompt: expected text or a list of messages, got an empty",
        ),
        (
            {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
            "chosen: expected text or a list of messages",
        ),
        ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, "prompt[0]: expected {role, content}, got text"),
        (
            {"prompt": [{"content": "a"}], "chosen": "b", "rejected": "c"},
            "prompt[0].role: expected text, got null",
        ),
        (
            {"prompt": [user("a")], "chosen": [assistant("b")] * 2, "rejected": [assistant("c")]},
            "chosen: expected one message after the prompt, got 2",
        ),
        ({"chosen": "b", "rejected": "c"}, "chosen: expected a dialogue that begins with"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "chosen: expected a prompt and an answer"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
            "rejected: expected the same messages as chosen but for the last one",
        ),
        ({"prompt": "a\0", "chosen": "b", "rejected": "c"}, "prompt: expected text without NUL"),
        (SAME[1] | {"item_id": "x" * 201}, "item_id: expected at most 200 characters, got 201"),
        (SAME[1] | {"item_id": ["x"]}, "item_id: expected text, got a list"),
        ({"prompt": "hi", "chosen": "no", "rejected": "yes"}, "chosen: expected the same choice as line 1"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: object, says: str) -> None:
    """File, line, field and what was expected, in one line; with skipping, it is counted instead."""
    path = write(tmp_path, SAME[0], "", row, {"prompt": "later", "chosen": "x", "rejected": "y"})
    with pytest.raises(InvalidInput) as caught:
        list(RecordReader(path))
    assert str(caught.value).startswith(f"{path}:3: {says}")
    assert "\n" not in str(caught.value)
    reader = RecordReader(path, skip_malformed=True)
    assert [chosen(record) for record in reader] == ["yes", "x"]
    assert reader.skipped == 1
    assert reader.first_problem.startswith(f"{path}:3: {says}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is NOT_FOUND, in one line."""
    with pytest.raises(NotFound, match="no such file"):
        RecordReader(tmp_path / "nothing.jsonl")


def larger(choice: Choice) -> tuple[Comparison, Item]:
    item = Item(
        item_id="i",
        prompt=(Message("user", "hi"),),
        candidates=tuple(Candidate(candidate_id=str(n), text=f"text {n}") for n in range(3)),
        campaign="c",
        prompt_id="p",
    )
    said = Comparison(
        task_id="t", annotator="ann", first_candidate_id="2", second_candidate_id="0", choice=choice
    )
    return said, item


def test_both_forms_by_hand() -> None:
    """The second of the two shown won: chosen is its text, in the form that was asked for."""
    said, item = larger(Choice.SECOND)
    row = format_record(said, item)
    assert row["prompt"] == [user("hi")]
    assert row["chosen"] == [assistant("text 0")]
    assert row["rejected"] == [assistant("text 2")]
    assert (row["prompt_id"], row["campaign"], row["annotator"]) == ("p", "c", "ann")
    row = format_record(said, item, "text")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("hi", "text 0", "text 2")
    with pytest.raises(InvalidInput, match="no text form"):
        format_record(said, replace(item, prompt=item.prompt * 2), "text")


def test_ties_and_skipped_are_counted() -> None:
    """TRL's schemas know winners only: what has none is counted, not written."""
    out = io.StringIO()
    rows = [larger(choice) for choice in (Choice.FIRST, Choice.TIE, Choice.SKIP, Choice.FLAG)]
    assert write_records(out, rows) == Written(rows=1, ties=1, skipped=2)
    assert len(out.getvalue().splitlines()) == 1


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    """Two pairs of one item of three come back as two items, with the same texts, choices and columns."""
    said, item = larger(Choice.FIRST)
    other = replace(said, first_candidate_id="0", second_candidate_id="1", choice=Choice.SECOND)
    path = tmp_path / "out.jsonl"
    with path.open("w") as out:
        write_records(out, [(said, item), (other, item)])
    records = list(RecordReader(path))
    assert [chosen(record) for record in records] == ["text 2", "text 1"]
    assert len({record.item.item_id for record in records}) == 2
    assert {record.item.prompt_id for record in records} == {"p"}
    assert {record.comparison.annotator for record in records} == {"ann"}


def test_real_pairs_are_read() -> None:
    """Every Open-Assistant pair is read, each with a winner and a prompt of at least one message."""
    folder = os.environ.get("TRIMTAB_DATA")
    if not folder:
        pytest.skip("TRIMTAB_DATA names no folder of real data")
    path = Path(folder) / "oasst_pairs.jsonl"
    reader = RecordReader(path, skip_malformed=True)
    records = list(reader)
    assert len(records) + reader.skipped == path.read_bytes().count(b"\n")
    assert reader.skipped <= 0.01 * len(records)
    assert all(record.item.prompt and record.comparison.preferred for record in records)
