"""Rows of every format become items and comparisons, bad rows are named, what is written can be read again."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.comparisons import read as common_read
from services.common.errors import InvalidInput, NotFound
from services.preference.domain import Candidate, Choice, Comparison, Item, Message, plan_tasks
from services.preference.files import row_writer
from services.preference.records import (
    Form,
    Record,
    RecordReader,
    Written,
    format_record,
    has_winner,
    write_records,
)


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
    (comparison,) = record.comparisons
    return record.item.candidate(comparison.preferred).text


def said(record: Record) -> list[str]:
    """ "better > worse" or "one = other" for each comparison, by texts."""
    text = {candidate.candidate_id: candidate.text for candidate in record.item.candidates}
    signs = {Choice.FIRST: ">", Choice.TIE: "="}
    return sorted(
        f"{text[one.first_candidate_id]} {signs[one.choice]} {text[one.second_candidate_id]}"
        for one in record.comparisons
    )


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
    assert record.comparisons[0].annotator == "import"


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
    assert record.comparisons[0].annotator == "ann"


def test_a_ranking_is_an_item_with_all_its_pairs(tmp_path: Path) -> None:
    """Four answers, two of them tied: one item, five wins and a tie, every task of the item answered."""
    (record,) = read(tmp_path, {"prompt": "hi", "ranked": ["a", ["b", "c"], "d"], "annotator": "ann"})
    assert sorted(candidate.text for candidate in record.item.candidates) == list("abcd")
    assert said(record) == ["a > b", "a > c", "a > d", "b = c", "b > d", "c > d"]
    planned = {task.task_id for task in plan_tasks(record.item, 1)}
    assert {comparison.task_id for comparison in record.comparisons} == planned
    assert {comparison.annotator for comparison in record.comparisons} == {"ann"}


def test_a_best_of_row_leaves_the_rest_open(tmp_path: Path) -> None:
    """The best beats each other text once, however often it stands there; between the others nothing was said."""
    row = {"query": "hi", "sample0": "a", "sample1": "b", "sample2": "c", "sample3": "b", "best": 2}
    (record,) = read(tmp_path, row)
    assert said(record) == ["c > a", "c > b"]
    assert len(record.item.candidates) == 3


def test_a_summary_comparison_keeps_who_and_what(tmp_path: Path) -> None:
    """Worker, confidence and policies of OpenAI's rows become annotator, confidence and sources."""
    row = {
        "info": {"id": "t3", "post": "Long."},
        "summaries": [{"text": "a", "policy": "sup"}, {"text": "b", "policy": "ppo"}],
        "choice": 1,
        "worker": "w",
        "extra": {"confidence": 9},
    }
    (record,) = read(tmp_path, row)
    assert {candidate.text: candidate.source for candidate in record.item.candidates} == {
        "a": "sup",
        "b": "ppo",
    }
    (comparison,) = record.comparisons
    assert (comparison.annotator, comparison.confidence, chosen(record)) == ("w", 1.0, "b")
    assert record.item.prompt_id == "t3"


def test_several_annotators_of_a_pair(tmp_path: Path) -> None:
    """All of them answer the same task, so that agreement is seen; each may say it twice, and not say the opposite."""
    rows = [SAME[1] | {"annotator": who} for who in ("ann", "bob", "ann")]
    other = {"prompt": "hi", "chosen": "no", "rejected": "yes", "annotator": "cat"}
    ann, bob, again, cat = read(tmp_path, *rows, other)
    assert again == ann
    assert ann.item == bob.item == cat.item
    assert ann.comparisons[0].task_id == bob.comparisons[0].task_id == cat.comparisons[0].task_id
    assert [chosen(record) for record in (ann, bob, cat)] == ["yes", "yes", "no"]
    with pytest.raises(InvalidInput, match="expected the same choice as"):
        read(tmp_path, *rows, other | {"annotator": "bob"})


def test_the_pairs_of_a_ranking_belong_together(tmp_path: Path) -> None:
    """By a name that each annotator's ranking has of its own; neither a pair nor a best-of row is a ranking."""
    ranked = {"prompt": "hi", "ranked": ["a", "b", "c"]}
    best = {"query": "hi", "sample0": "a", "sample1": "b", "sample2": "c", "best": 0}
    ann, bob, two, choice = read(
        tmp_path,
        ranked | {"annotator": "ann"},
        ranked | {"annotator": "bob"},
        {"prompt": "hi", "ranked": ["a", "b"]},
        best,
    )
    names = [{comparison.ranking_id for comparison in one.comparisons} for one in (ann, bob, two, choice)]
    assert [len(found) for found in names] == [1, 1, 1, 1]
    assert names[2] == names[3] == {""}
    assert len(names[0] | names[1]) == 2


def test_an_item_id_stands_for_one_question(tmp_path: Path) -> None:
    """A row that gives it to another prompt, other answers or another campaign is bad, and names the first one."""
    row = SAME[1] | {"item_id": 7}
    others = [
        row | {"prompt": "ho"},
        row | {"rejected": "maybe"},
        row | {"campaign": "spring"},
        {"prompt": "hi", "ranked": ["yes", "no", "maybe"], "item_id": "7"},
    ]
    path = write(tmp_path, row)
    for other in others:
        with pytest.raises(InvalidInput, match=rf":2: item_id: expected the same prompt, .* as {path}:1$"):
            read(tmp_path, row, other)
    reader = RecordReader(write(tmp_path, row, *others, row | {"annotator": "bob"}), skip_bad_rows=True)
    assert [record.item.item_id for record in reader] == ["7", "7"]
    assert reader.report.bad_rows == 4


def test_each_campaign_has_items_of_its_own(tmp_path: Path) -> None:
    """The same pair in two campaigns and in none is three items, under names that stay."""
    none, again = read(tmp_path, SAME[1], SAME[1])
    (spring,) = read(tmp_path, SAME[1], campaign="spring")
    (autumn,) = read(tmp_path, SAME[1] | {"campaign": "autumn"}, campaign="spring")
    assert none.item == again.item
    assert len({one.item.item_id for one in (none, spring, autumn)}) == 3
    assert len({one.comparisons[0].task_id for one in (none, spring, autumn)}) == 3


@pytest.mark.parametrize("form", ["conversational", "rankings"])
def test_the_turns_of_a_conversation_stay_together(tmp_path: Path, form: Form) -> None:
    """Rows of one tree are of one group, and are so when they have been imported and exported."""
    rows = [SAME[1] | {"prompt": f"turn {n}", "tree": "t"} for n in range(3)]
    with row_writer(tmp_path / "out.jsonl") as out:
        pairs = [(record.comparisons[0], record.item) for record in read(tmp_path, *rows)]
        write_records(out, pairs, form)
    assert {record.origin.group for record in common_read(tmp_path / "out.jsonl")} == {"t"}


def test_a_margin_is_kept(tmp_path: Path) -> None:
    """Of a pair, or of a list of two; a list of more, or a tie, has none."""
    pair, listed, without = read(
        tmp_path,
        SAME[1] | {"margin": 2},
        {"prompt": "x", "answers": ["b", "a"], "ranks": [2, 1], "margin": -0.5},
        {"prompt": "y", "chosen": "b", "rejected": "a"},
    )
    assert [one.comparisons[0].margin for one in (pair, listed, without)] == [2.0, -0.5, None]
    for ranks in ([1, 1, 2], [1, 1]):
        row = {"prompt": "x", "answers": list("abc")[: len(ranks)], "ranks": ranks, "margin": 1.0}
        with pytest.raises(InvalidInput, match="margin: expected one for two answers of different ranks"):
            read(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "row: expected one JSON object"),
        ("[" * 100_000, "row: expected one JSON object"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected: expected text or a list of messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected: expected another text than chosen"),
        (SAME[1] | {"item_id": "x" * 201}, "item_id: expected at most 200 characters, got 201"),
        ({"prompt": "a", "ranked": [str(n) for n in range(33)]}, "row: expected at most 32 answers, got 33"),
        ({"prompt": "hi", "chosen": "no", "rejected": "yes"}, "row: expected the same choice as "),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, says: str) -> None:
    """File, line, field and what was expected, in one line; with skipping, it is counted instead."""
    path = write(tmp_path, SAME[0], "", row, {"prompt": "later", "chosen": "x", "rejected": "y"})
    with pytest.raises(InvalidInput) as caught:
        list(RecordReader(path))
    assert str(caught.value).startswith(f"{path}:3: {says}")
    assert "\n" not in str(caught.value)
    reader = RecordReader(path, skip_bad_rows=True)
    assert [chosen(record) for record in reader] == ["yes", "x"]
    assert (reader.report.rows, reader.report.records, reader.report.bad_rows) == (3, 2, 1)
    assert reader.report.first_bad.startswith(f"{path}:3: {says}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is NOT_FOUND, in one line."""
    with pytest.raises(NotFound, match="no such file"):
        RecordReader(tmp_path / "nothing.jsonl")


class Rows(list[dict[str, Any]]):
    def write(self, row: dict[str, Any]) -> None:
        self.append(row)


def larger(choice: Choice) -> tuple[Comparison, Item]:
    item = Item(
        item_id="i",
        prompt=(Message("user", "hi"),),
        candidates=tuple(Candidate(candidate_id=str(n), text=f"text {n}") for n in range(3)),
        campaign="c",
        prompt_id="p",
    )
    comparison = Comparison(
        task_id="t", annotator="ann", first_candidate_id="2", second_candidate_id="0", choice=choice
    )
    return comparison, item


def test_all_forms_by_hand() -> None:
    """The second of the two shown won: chosen is its text, in the form that was asked for."""
    comparison, item = larger(Choice.SECOND)
    row = format_record(comparison, item)
    assert row["prompt"] == [user("hi")]
    assert row["chosen"] == [assistant("text 0")]
    assert row["rejected"] == [assistant("text 2")]
    assert (row["prompt_id"], row["campaign"], row["annotator"]) == ("p", "c", "ann")
    implicit = format_record(comparison, item, "implicit")
    assert implicit["chosen"] == [user("hi"), assistant("text 0")]
    assert implicit["rejected"] == [user("hi"), assistant("text 2")]
    assert "prompt" not in implicit
    row = format_record(comparison, item, "text")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("hi", "text 0", "text 2")
    with pytest.raises(InvalidInput, match="no text form"):
        format_record(comparison, replace(item, prompt=item.prompt * 2), "text")


def test_ties_and_skipped_are_counted() -> None:
    """TRL's schemas know winners only: what has none is counted, not written."""
    out = Rows()
    rows = [larger(choice) for choice in (Choice.FIRST, Choice.TIE, Choice.SKIP, Choice.FLAG)]
    assert write_records(out, rows) == Written(rows=1, ties=1, skipped=2)
    assert len(out) == 1


@pytest.mark.parametrize("form", ["conversational", "text", "implicit", "rankings"])
def test_a_text_that_an_item_has_twice(tmp_path: Path, form: Form) -> None:
    """Its copies got different places in a ranking: between them is a tie, and what each did against a third text is
    read again, whichever way they contradict each other."""
    _, item = larger(Choice.FIRST)
    item = replace(
        item,
        candidates=tuple(
            replace(one, text="same") if one.candidate_id != "1" else one for one in item.candidates
        ),
    )
    pairs = [("0", "1"), ("1", "2"), ("0", "2")]
    ranking = [
        Comparison(
            task_id=first + second,
            annotator="ann",
            first_candidate_id=first,
            second_candidate_id=second,
            choice=Choice.FIRST,
            ranking_id="r",
        )
        for first, second in pairs
    ]
    with row_writer(tmp_path / "out.jsonl") as out:
        assert write_records(out, [(one, item) for one in ranking], form) == Written(rows=2, ties=1)
    records = list(RecordReader(tmp_path / "out.jsonl"))
    assert [said(record) for record in records] == [["same > text 1"], ["text 1 > same"]]
    assert not has_winner(ranking[2], item)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
@pytest.mark.parametrize("form", ["conversational", "text", "implicit"])
def test_what_is_written_can_be_read_again(tmp_path: Path, name: str, form: Form) -> None:
    """Two pairs of one item of three come back as two items, with the same texts, choices and columns."""
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    comparison, item = larger(Choice.FIRST)
    item = replace(
        item, candidates=tuple(replace(c, source=f"policy@{c.candidate_id}") for c in item.candidates)
    )
    other = replace(comparison, first_candidate_id="0", second_candidate_id="1", choice=Choice.SECOND)
    path = tmp_path / name
    with row_writer(path) as out:
        write_records(out, [(replace(comparison, confidence=0.5), item), (other, item)], form)
    records = list(RecordReader(path))
    assert [chosen(record) for record in records] == ["text 2", "text 1"]
    assert [record.comparisons[0].confidence for record in records] == [0.5, None]
    assert len({record.item.item_id for record in records}) == 2
    assert {record.item.prompt_id for record in records} == {"p"}
    assert {record.comparisons[0].annotator for record in records} == {"ann"}
    assert {c.text: c.source for c in records[0].item.candidates} == {
        "text 2": "policy@2",
        "text 0": "policy@0",
    }
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part of a file nor, for an unknown ending, any file; no comparisons make an empty file."""
    for name in ("out.jsonl", "out.parquet"):
        with pytest.raises(RuntimeError), row_writer(tmp_path / name) as out:
            out.write({"prompt": "hi"})
            raise RuntimeError
    with (
        pytest.raises(InvalidInput, match="expected a file that ends with"),
        row_writer(tmp_path / "out.csv"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    for name in ("out.jsonl", "out.parquet"):
        with row_writer(tmp_path / name):
            pass
        assert list(RecordReader(tmp_path / name)) == []


@pytest.mark.parametrize("name", ["oasst_pairs.jsonl", "hh_harmless_pairs.jsonl.gz"])
def test_real_pairs_are_read(name: str) -> None:
    """Nearly every Open-Assistant and HH pair becomes an item with a winner and a prompt."""
    folder = os.environ.get("TRIMTAB_DATA")
    if not folder:
        pytest.skip("TRIMTAB_DATA names no folder of real data")
    reader = RecordReader(Path(folder) / name, skip_bad_rows=True)
    records = list(reader)
    assert len(records) + reader.report.bad_rows == reader.report.rows
    assert reader.report.bad_rows <= 0.01 * len(records)
    assert all(record.item.prompt and chosen(record) is not None for record in records)
