"""A run that logs elsewhere too: the same names and values as its metrics file, across a resume, whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.local.in_process import run_in_process
from services.common.spec.run import RunSpec
from services.learner.logs.sink import LOST
from tests.fakes.small_runs import make_files, rows_of, run_tables
from tests.unit.learner.logs import read_back


def test_a_run_logs_what_its_file_says_and_outlives_a_broken_log(tmp_path: Path) -> None:
    """TensorBoard has every step of both lives as the file has it; a broken MLflow is counted, no more."""
    pytest.importorskip("tensorboard")
    logging = {"to": ["tensorboard", "mlflow"], "mlflow": {"uri": "no-such-scheme://nowhere"}}
    tables = run_tables(make_files(tmp_path)) | {"steps": 2, "logging": logging}
    out, before = tmp_path / "run", LOST.labels("mlflow")._value.get()
    run_in_process(RunSpec.model_validate(tables), out)
    run_in_process(RunSpec.model_validate(tables | {"steps": 3}), out)
    rows = rows_of(out)
    points = read_back.of_tensorboard(out / "tensorboard")
    assert points.keys() == rows[-1].keys() - {"step", "time"}
    for name in ("objective/kl", "loss/policy_avg", "rollouts/trained"):
        assert points[name] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert [row["logging/lost_tensorboard"] for row in rows] == [0, 0, 0]
    assert LOST.labels("mlflow")._value.get() == before + 3
