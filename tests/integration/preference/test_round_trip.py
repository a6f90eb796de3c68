"""Recorded preferences into the service, out of it and into another one: nothing that was said is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.common.comparisons import read
from services.learner.jobs.comparisons import by_prompt
from services.preference.records import Form, RecordReader
from services.preference.transfer import app, export_records, export_targets, import_records
from tests.fakes.pages import Pages
from trimtab.clients.preference import PreferenceClient

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "p1",
        "chosen": "a",
        "rejected": "b",
        "annotator": "ann",
        "margin": 1.5,
        "confidence": 0.5,
        "chosen_source": "new",
    },
    {"prompt": "p1", "chosen": "a", "rejected": "b", "annotator": "bob"},
    {"prompt": "p1", "chosen": "b", "rejected": "a", "annotator": "cat"},
    {"prompt": "p2", "ranked": ["a", ["b", "c"], "d"], "annotator": "ann", "prompt_id": "two"},
    {"prompt": "p2", "ranked": ["b", "a", "c", "d"], "annotator": "bob", "prompt_id": "two"},
    {"prompt": "p3", "answers": ["x", "y"], "ranks": [1, 1], "annotator": "ann"},
    {"query": "p4", "sample0": "a", "sample1": "b", "sample2": "c", "best": 2, "annotator": "bob"},
]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[PreferenceClient, PreferenceClient]]:
    """Two services."""
    services = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        services.append(Pages(tmp_path / name))
    try:
        with services[0].start() as one, services[1].start() as other:
            yield one, other
    finally:
        ended = [service.stop() for service in services]
    assert ended == [0, 0]


def exported(client: PreferenceClient, path: Path, form: Form = "rankings") -> list[str]:
    """The rows of an export, sorted."""
    export_records(client, path, form=form)
    return sorted(path.read_text().splitlines())


def test_a_key_that_would_travel_in_the_clear_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a certificate's file that is not there: no traceback, and nothing is sent."""
    monkeypatch.setenv("TRIMTAB_KEY", "tk_secret")
    asked = ["export", str(tmp_path / "out.jsonl"), "--target", "label.example:50055"]
    ran = CliRunner().invoke(app, asked)
    assert (ran.exit_code, ran.output.count("\n")) == (2, 1)
    assert "in the clear" in ran.output and "tk_secret" not in ran.output
    ran = CliRunner().invoke(app, [*asked, "--ca-file", str(tmp_path / "none.pem")])
    assert (ran.exit_code, ran.output.count("\n")) == (1, 1)
    assert "none.pem" in ran.output


def test_what_was_said_goes_round(tmp_path: Path, two: tuple[PreferenceClient, PreferenceClient]) -> None:
    """Several annotators of a pair, rankings with ties, margins: out of one service, as JSON lines and as Parquet, and
    into another, which then says and rates the same."""
    one, other = two
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert import_records(one, RecordReader(source)) == (3 + 6 + 6 + 1 + 2, 18)
    assert import_records(one, RecordReader(source)) == (18, 0)
    counts = one.statistics(annotators=True)
    assert (counts.items, counts.comparisons, counts.ties) == (4, 18, 2)
    # Of p1: ann and bob agree, cat with neither. Of p2's six pairs: all but a-b and b-c.
    assert counts.agreement == pytest.approx((1 + 4) / (3 + 6))
    assert {row.annotator: row.comparisons for row in counts.annotators} == {"ann": 8, "bob": 9, "cat": 1}
    told = [answer.comparison for answer in one.comparisons()]
    rankings: dict[str, int] = {}
    for row in told:
        if row.ranking_id:
            rankings[row.ranking_id] = rankings.get(row.ranking_id, 0) + 1
    assert list(rankings.values()) == [6, 6]
    assert [row.margin for row in told if row.HasField("margin")] == [1.5]

    written = exported(one, tmp_path / "out.jsonl")
    assert len(written) == 3 + 2 + 1 + 2
    assert import_records(other, RecordReader(tmp_path / "out.jsonl")) == (18, 18)
    assert exported(other, tmp_path / "again.jsonl") == written
    again = other.statistics(annotators=True)
    assert (again.comparisons, again.ties, again.agreement) == (18, 2, counts.agreement)
    export_records(one, tmp_path / "out.parquet", form="rankings")
    assert import_records(other, RecordReader(tmp_path / "out.parquet")) == (18, 0)
    # The answers that were compared, each with its rating as a target.
    for name in ("targets.jsonl", "targets.parquet"):
        assert export_targets(one, tmp_path / name) == 2 + 4 + 2 + 3
    scored = [json.loads(line) for line in (tmp_path / "targets.jsonl").read_text().splitlines()]
    assert sum(row["target"] ** 2 for row in scored) / 11 == pytest.approx(1.0)
    best = max((row for row in scored if row["prompt_id"] == "two"), key=lambda row: float(row["target"]))
    assert best["completion"][0]["content"] in ("a", "b")
    assert pq.read_table(tmp_path / "targets.parquet").to_pylist() == scored
    # What a reward model is trained on is the same, too, margins among it.
    before, after = (by_prompt(read(tmp_path / name)) for name in ("out.jsonl", "out.parquet"))
    assert before == after
    assert [win.margin for prompt in before for win in prompt.wins if win.margin is not None] == [1.5]


def test_the_margin_column_is_in_all_rows_or_in_none(
    tmp_path: Path, two: tuple[PreferenceClient, PreferenceClient]
) -> None:
    """TRL's trainer looks for it in the first row alone; confidence makes one where asked for."""
    plain, other = two
    pair = {"prompt": "p1", "chosen": "a", "rejected": "b", "annotator": "ann"}
    sure = {"prompt": "p2", "chosen": "a", "rejected": "b", "annotator": "ann", "confidence": 0.5}
    import_records(plain, RecordReader([pair, sure]))
    rows = [json.loads(row) for row in exported(plain, tmp_path / "none.jsonl", "conversational")]
    assert ["margin" in row for row in rows] == [False, False]
    export_records(plain, tmp_path / "sure.jsonl", confidence_margin=3.0)
    rows = [json.loads(row) for row in (tmp_path / "sure.jsonl").read_text().splitlines()]
    assert sorted(row["margin"] for row in rows) == [0.0, 1.5]
    import_records(other, RecordReader([pair | {"margin": 2.0}, sure]))
    rows = [json.loads(row) for row in exported(other, tmp_path / "some.jsonl", "implicit")]
    assert sorted(row["margin"] for row in rows) == [0.0, 2.0]
