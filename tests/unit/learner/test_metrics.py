"""metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from services.learner.ledger import Ledger
from services.learner.metrics import append_metrics, keep_metrics, metrics_rows


def test_the_first_row_makes_the_runs_folder(tmp_path: Path) -> None:
    """On a new volume there is none: the first step comes before the first checkpoint, which would make it."""
    path = tmp_path / "runs" / "new" / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, step, {"objective/kl": 0.5}, Ledger())
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    keep_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_rows_are_read_one_after_the_other(tmp_path: Path) -> None:
    """A resume never has all of them in memory; a line that a crash cut short is dropped with its step."""
    path = tmp_path / "metrics.jsonl"
    assert list(metrics_rows(path)) == []
    for step in (1, 2):
        append_metrics(path, step, {"lr": 0.5}, Ledger())
    with path.open("a") as stream:
        stream.write('{"step": 3, "lr"')
    keep_metrics(path, 3)
    rows = metrics_rows(path)
    assert next(rows)["step"] == 1
    assert [row["step"] for row in rows] == [2]
