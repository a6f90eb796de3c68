"""What is written to TensorBoard, W&B and MLflow is read back with their own readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.spec.metric_logs import LoggingSpec, LogName
from services.learner.logs.base import RunIdentity
from services.learner.logs.registry import LOGS
from tests.unit.learner.logs import read_back

SETTINGS = {"steps": 4, "optimiser": {"learning_rate": 1e-5}}


def identity(folder: Path) -> RunIdentity:
    return RunIdentity(uid="walks-1f", name="walks", folder=folder, settings=SETTINGS)


def write(name: LogName, folder: Path, *, first: int, values: list[float]) -> None:
    """A life of the learner that begins after `first` steps: open, a row a step, close."""
    log = LOGS[name](identity(folder), LoggingSpec(to=(name,)), first)
    for at, value in enumerate(values, first + 1):
        log.write(at, 1000.0 + at, {"objective/kl": value, "lr": 0.5})
    log.close()


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """A resume after step 2 of 3: the lost third step is hidden, the one trained again stands in its place."""
    pytest.importorskip("tensorboard")
    write("tensorboard", tmp_path, first=0, values=[1.0, 2.0, 3.0])
    write("tensorboard", tmp_path, first=2, values=[3.5, 4.5])
    points = read_back.of_tensorboard(tmp_path / "tensorboard")
    assert points == {
        "objective/kl": [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)],
        "lr": [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)],
    }


def test_tensorboard_of_a_run_that_begins_again(tmp_path: Path) -> None:
    """A life that ended before any checkpoint is hidden by the one that begins at the first step again."""
    pytest.importorskip("tensorboard")
    write("tensorboard", tmp_path, first=0, values=[1.0, 2.0, 3.0])
    write("tensorboard", tmp_path, first=0, values=[1.5])
    assert read_back.of_tensorboard(tmp_path / "tensorboard")["objective/kl"] == [(1, 1.5)]


def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server: both lives write to one run, which has the spec as parameters and the uid as a tag."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # and gone after the test
    write("mlflow", tmp_path, first=0, values=[1.0, 2.0])
    kept = json.loads((tmp_path / "mlflow_run.json").read_text())
    write("mlflow", tmp_path, first=2, values=[3.0])
    assert json.loads((tmp_path / "mlflow_run.json").read_text()) == kept
    points = read_back.of_mlflow(tmp_path, kept["run_id"])
    assert points == {"objective/kl": [(1, 1.0), (2, 2.0), (3, 3.0)], "lr": [(1, 0.5), (2, 0.5), (3, 0.5)]}
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").absolute().as_uri())
    run = client.get_run(kept["run_id"])
    assert run.data.params == {"steps": "4", "optimiser.learning_rate": "1e-05"}
    assert run.data.tags["trimtab.run_uid"] == "walks-1f"
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_wandb_works_without_network(tmp_path: Path) -> None:
    """Offline both lives leave a file each under the same run id, with the step as a column."""
    pytest.importorskip("wandb")
    write("wandb", tmp_path, first=0, values=[1.0, 2.0])
    [first] = (tmp_path / "wandb").glob("offline-run-*/run-walks-1f.wandb")
    run_id, points = read_back.of_wandb(first)
    assert run_id == "walks-1f"
    assert points["objective/kl"] == [(1, 1.0), (2, 2.0)]
    assert points["lr"] == [(1, 0.5), (2, 0.5)]
    write("wandb", tmp_path / "resumed", first=1, values=[2.5])
    [second] = (tmp_path / "resumed" / "wandb").glob("offline-run-*/run-walks-1f.wandb")
    assert read_back.of_wandb(second)[0] == "walks-1f"
    assert read_back.of_wandb(second)[1]["objective/kl"] == [(2, 2.5)]
