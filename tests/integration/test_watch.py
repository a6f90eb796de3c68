"""A run that is watched: the second opinion, alarms and the worst samples, and the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.local.in_process import run_in_process
from services.common.errors import InvalidInput
from services.common.rules.registry import make_rule
from services.common.spec.run import RunSpec
from services.learner.watch.alarms import NAMES
from tests.fakes.small_runs import make_files, rows_of, run_tables

RULE = "regex:mode=count,pattern=[n-z]"
WATCH = {"annotator_rule": RULE, "window_steps": 1, "worst_samples": 5, "kl_nats_per_token": 1e-9}


def test_a_run_is_watched_and_goes_on_being_watched(tmp_path: Path) -> None:
    """Figures of both judges each step; the file's worst are of the last window; a resume keeps what was first."""
    tables = run_tables(make_files(tmp_path)) | {"steps": 2, "watch": WATCH}
    out = tmp_path / "run"
    run_in_process(RunSpec.model_validate(tables), out)
    run_in_process(RunSpec.model_validate(tables | {"steps": 3}), out)
    rows = rows_of(out)
    for row in rows:
        assert row["rewards/reward/mean"] == pytest.approx(row["objective/scores"])
        assert row["alarms/raised"] == sum(row.get(f"alarms/{name}", 0.0) for name in NAMES)
        assert row["alarms/kl_bound_value"] == row["objective/kl"] / row["completions/mean_length"]
    # The first step has the reference's own weights, and later ones have not.
    assert rows[0]["alarms/kl_bound"] == 0
    assert rows[2]["alarms/kl_bound"] == (rows[2]["alarms/kl_bound_value"] > 1e-9)
    assert rows[2]["alarms/length_drift_value"] == pytest.approx(
        rows[2]["completions/mean_length"] / rows[0]["completions/mean_length"]
    )
    worst = [json.loads(line) for line in (out / "worst_samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in worst] == [3] * 5
    assert worst == sorted(worst, key=lambda row: -row["gap"])
    rule = make_rule(RULE)
    assert [row["annotator"] for row in worst] == [rule.score("", row["completion"], {}) for row in worst]


def test_a_rule_that_is_not_known_is_told_before_training(tmp_path: Path) -> None:
    """One line, and no step."""
    tables = run_tables(make_files(tmp_path)) | {"watch": {"annotator_rule": "sentimental"}}
    with pytest.raises(InvalidInput, match="rule 'sentimental' is not known"):
        run_in_process(RunSpec.model_validate(tables), tmp_path / "run")
