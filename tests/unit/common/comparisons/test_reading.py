"""Sources of rows, and what a report counts."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common.comparisons import Comparison, Message, read
from services.common.comparisons.fields import Fault
from services.common.errors import ConfigError, InvalidInput, NotFound

ROWS = [
    {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    {"prompt": "two\u2028lines", "chosen": "a", "rejected": "b"},
]


def write(path: Path, *rows: object) -> Path:
    text = "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
    )
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def answers(source: Any, **options: Any) -> list[tuple[str, ...]]:
    return [record.answers for record in read(source, **options)]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.json"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    """Plain and compressed; a line ends at a newline and nowhere else; places count blank lines too."""
    path = write(tmp_path / name, ROWS[0], "", ROWS[1])
    first, second = read(path)
    assert second.prompt == (Message("user", "two\u2028lines"),)
    assert (first.origin.place, second.origin.place) == (f"{path}:1", f"{path}:3")


def test_a_json_array(tmp_path: Path) -> None:
    """A file that is one array gives its elements as rows."""
    path = tmp_path / "pairs.json"
    path.write_text("\n " + json.dumps([*ROWS, 3]))
    with pytest.raises(InvalidInput, match=r"pairs.json: row 3: row: expected a JSON object, got a number"):
        answers(path)
    assert answers(path, skip_bad_rows=True) == [("yes", "no"), ("a", "b")]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["pairs.json", "pairs.json.gz"])
def test_a_byte_order_mark(tmp_path: Path, name: str, indent: int | None) -> None:
    """One before an array, or before lines, as Windows' programs write it, changes nothing."""
    path = tmp_path / name
    for text in (json.dumps(ROWS, indent=indent), "\n".join(json.dumps(row) for row in ROWS)):
        data = text.encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        assert answers(path) == [("yes", "no"), ("a", "b")]


def test_formats_that_share_a_parquet_file(tmp_path: Path) -> None:
    """Each row has the columns of all, null where they are another format's."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    arrow = pytest.importorskip("pyarrow")
    rows: list[dict[str, Any]] = [
        ROWS[0],
        {"query": "hi", "sample0": "a", "sample1": "b", "best": 1},
        {"query": "hi", "sample0": "a", "sample1": "b", "sample2": "c", "best": 2},
        {"prompt": "hi", "answers": ["a", "b"], "ranks": [2, 1]},
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = arrow.Table.from_pylist([dict.fromkeys(columns) | row for row in rows])
    parquet.write_table(table, tmp_path / "p.parquet")
    assert list(map(len, answers(tmp_path / "p.parquet"))) == [2, 2, 3, 2]


def test_parquet(tmp_path: Path) -> None:
    """Columns of text and of messages are read, row by row, with the number of the row as its place."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    arrow = pytest.importorskip("pyarrow")
    message = [{"role": "assistant", "content": "yes"}]
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": "hi"}], "chosen": message, "rejected": message}
    ]
    rows.append(rows[0] | {"rejected": [{"role": "assistant", "content": "no"}], "margin": 0.5})
    parquet.write_table(
        arrow.Table.from_pylist(
            rows,
            arrow.schema(
                [
                    (name, arrow.list_(arrow.struct([("role", arrow.string()), ("content", arrow.string())])))
                    for name in ("prompt", "chosen", "rejected")
                ]
                + [("margin", arrow.float64())]
            ),
        ),
        tmp_path / "p.parquet",
    )
    reading = read(tmp_path / "p.parquet", skip_bad_rows=True)
    (record,) = reading
    assert isinstance(record, Comparison)
    assert (record.prompt, record.answers, record.margin) == ((Message("user", "hi"),), ("yes", "no"), 0.5)
    assert (
        reading.report.first_bad
        == f"{tmp_path}/p.parquet: row 1: rejected: expected another text than chosen"
    )


def test_data_sets(tmp_path: Path) -> None:
    """A folder of save_to_disk, a builder with options, and a Dataset in memory say the same; options are checked."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(tmp_path / "two")
    path = write(tmp_path / "pairs.jsonl", *ROWS)
    for source in (tmp_path / "one", f"datasets:{tmp_path}/two", made, f"datasets:json?data_files={path}"):
        assert answers(source) == [("yes", "no"), ("a", "b")]
    assert answers(f"datasets:{tmp_path}/two?split=test") == [("a", "b")]
    with pytest.raises(InvalidInput, match="expected a split among train, test, got dev"):
        answers(f"datasets:{tmp_path}/two?split=dev")
    with pytest.raises(InvalidInput, match=r"expected options among name, .* got trust_remote_code"):
        answers(f"datasets:{tmp_path}/two?trust_remote_code=1")
    with pytest.raises(InvalidInput, match=r"datasets:json\?data_files=.*: "):
        answers(f"datasets:json?data_files={tmp_path}/none.jsonl")


@pytest.mark.parametrize(("source", "package"), [("x.parquet", "pyarrow"), ("datasets:x", "datasets")])
def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    """One clear line says which package is missing and how to get it."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*trimtab-platform\[data\]"):
        answers(source)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.jsonl.gz", b"no gzip", "not a whole gzip file"),
        (
            "x.jsonl.gz",
            gzip.compress(json.dumps(ROWS[0]).encode() * 3, mtime=0)[:-9],
            "not a whole gzip file",
        ),
        ("x.json", b"[1, 2", "expected one JSON array or an object per line"),
        ("x.csv", b"a,b", "expected a file that ends with .jsonl"),
        ("x.parquet", b"nothing", "not readable as Parquet"),
        ("x.jsonl", b'{"prompt": "\xff"}', "x.jsonl:1: row: expected UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    """One line that names the file and what was expected."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        answers(tmp_path / name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file is NOT_FOUND at once, before anything is read."""
    with pytest.raises(NotFound, match="no such file"):
        read(tmp_path / "nothing.jsonl")


def test_the_report(tmp_path: Path) -> None:
    """Bad rows by fault, duplicates, disagreements and empty answers are counted, each with its first place."""
    pair = ROWS[0]
    path = write(
        tmp_path / "p.jsonl",
        pair,
        pair,  # a duplicate
        pair | {"annotator": "ann"},  # somebody else said the same: none
        {"prompt": "hi", "chosen": "no", "rejected": "yes"},  # a disagreement
        {"prompt": "hi", "ranked": ["no", "maybe", "yes"]},  # another
        pair | {"rejected": " \n"},
        pair | {"rejected": "yes"},
        pair | {"rejected": 3},
        "{",
    )
    with pytest.raises(InvalidInput, match=rf"{path}:7: rejected: expected another text"):
        answers(path)
    reading = read(path, skip_bad_rows=True)
    assert len(list(reading)) == 6
    report = reading.report
    assert (report.rows, report.records, report.bad_rows) == (9, 6, 3)
    assert report.faults == {Fault.IDENTICAL: 1, Fault.NOT_TEXT: 1, Fault.MALFORMED: 1}
    assert (report.duplicates, report.disagreements, report.empty_answers) == (1, 2, 1)
    assert report.first["duplicates"] == f"{path}:2"
    assert report.first["disagreements"] == f"{path}:4"
    assert report.first["empty answers"] == f"{path}:6: answer 2"
    assert report.first_bad == f"{path}:7: rejected: expected another text than chosen"
    assert report.lines()[0] == "9 rows read, 6 used, 3 bad ones left out"
    assert (
        f"fields that are not text: 1, first {path}:8: rejected: expected text or a list of messages, got a number"
        in report.lines()
    )
    assert len(answers(path, skip_bad_rows=True, drop_duplicates=True)) == 5


def test_real_pairs() -> None:
    """Of HH dialogues nearly all are read (a few part before their last answer), of Open-Assistant pairs all."""
    folder = os.environ.get("TRIMTAB_DATA")
    if not folder:
        pytest.skip("TRIMTAB_DATA names no folder of real data")
    reading = read(Path(folder) / "hh_harmless_pairs.jsonl.gz", skip_bad_rows=True)
    dialogues = list(reading)
    assert len(dialogues) + reading.report.bad_rows == reading.report.rows > 0
    assert reading.report.bad_rows <= 0.01 * reading.report.rows
    assert all(record.prompt[0].role == "user" for record in dialogues)
    assert all(
        record.prompt and len(record.answers) == 2 for record in read(Path(folder) / "oasst_pairs.jsonl")
    )
