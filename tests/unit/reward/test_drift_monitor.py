"""Drift of the table's models: gauges, log lines, references of folders, swaps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common.errors import InvalidInput, ServiceError
from services.reward.drift import DriftSpec
from services.reward.drift_monitor import REFERENCE_FILE, DriftMonitor, read_reference, write_reference
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds

SPEC = DriftSpec(reference_rows=400, window_rows=400)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"trimtab_reward_drift_{name}", labels)


def answer(monitor: DriftMonitor, model: str, digest: str, values: np.ndarray) -> None:
    """Rows of a constant length with these scores; NaN is an error."""
    rows = [
        ScoreRow(messages=(("user", "p"),), completion="c" * (5 + index % 7)) for index in range(len(values))
    ]
    outcomes = [
        ScoreOutcome(error=ServiceError("x")) if math.isnan(score) else ScoreOutcome(value=float(score))
        for score in values
    ]
    monitor.answered(model, digest, rows, outcomes)


def scores(seed: int, rows: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, rows)


def test_gauges_and_one_log_line_per_alarm() -> None:
    """A shift sets the alarm's gauge and logs a warning once; closing takes every series away."""
    monitor = DriftMonitor(SPEC)
    monitor.opened("d-shift", "one")
    with capture_logs() as lines:
        answer(monitor, "d-shift", "one", scores(1, 800))
        assert value("alarm", model="d-shift", kind="psi") == 0
        answer(monitor, "d-shift", "one", scores(2, 1600, mean=3))
    assert value("alarm", model="d-shift", kind="psi") == 1
    assert value("mean", model="d-shift", window="current") == pytest.approx(3, abs=0.2)
    assert value("mean", model="d-shift", window="reference") == pytest.approx(0, abs=0.2)
    assert value("variance", model="d-shift", window="current") == pytest.approx(1, abs=0.3)
    assert value("rows", model="d-shift", window="reference") == 400
    [line] = [line for line in lines if line["event"] == "drift"]
    assert (line["log_level"], line["model"], line["kind"]) == ("warning", "d-shift", "psi")
    assert line["distance"] > line["bound"] == 0.25
    monitor.closed("d-shift")
    assert value("psi", model="d-shift") is None
    assert value("alarm", model="d-shift", kind="psi") is None


def test_a_swap_begins_a_new_reference() -> None:
    """After a swap the first rows of the new digest are the reference; late rows of the old one are left out."""
    monitor = DriftMonitor(SPEC)
    monitor.opened("d-swap", "one")
    answer(monitor, "d-swap", "one", scores(1, 800))
    assert value("psi", model="d-swap") is not None
    monitor.opened("d-swap", "two")
    assert value("psi", model="d-swap") is None
    answer(monitor, "d-swap", "one", scores(2, 400))
    answer(monitor, "d-swap", "two", scores(3, 800, mean=50))
    assert value("mean", model="d-swap", window="reference") == pytest.approx(50, abs=0.2)
    assert value("alarm", model="d-swap", kind="psi") == 0
    monitor.closed("d-swap")


def test_a_folder_brings_its_reference(tmp_path: Path) -> None:
    """With reference_scores.json the first window is compared with the stored scores."""
    write_reference(tmp_path, [*scores(1, 500).tolist(), None], [7] * 501, digest="one")
    monitor = DriftMonitor(SPEC)
    monitor.opened("d-folder", "one", tmp_path)
    answer(monitor, "d-folder", "one", scores(2, 400, mean=3))
    assert value("rows", model="d-folder", window="reference") == 501
    assert value("error_share", model="d-folder", window="reference") == pytest.approx(1 / 501)
    assert value("alarm", model="d-folder", kind="psi") == 1
    monitor.closed("d-folder")


def test_another_models_reference_is_left_aside(tmp_path: Path) -> None:
    """A stored reference that names another digest is ignored, and that is said."""
    write_reference(tmp_path, [0.5] * 200, [7] * 200, digest="one")
    assert read_reference(tmp_path, "one") is not None
    with capture_logs() as lines:
        assert read_reference(tmp_path, "two") is None
    assert "another model's" in lines[0]["event"]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        json.dumps({"scores": [1.0] * 200, "lengths": [1] * 199}),
        json.dumps({"scores": [1.0] * 99, "lengths": [1] * 99}),
        json.dumps({"scores": [math.inf] * 200, "lengths": [1] * 200}),
        json.dumps({"scores": ["x"] * 200, "lengths": [1] * 200}),
        json.dumps({"scores": [1.0] * 200, "lengths": [math.inf] * 200}),
    ],
)
def test_a_reference_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    """A damaged file is an error that names it; a model that brings one is watched all the same."""
    (tmp_path / REFERENCE_FILE).write_text(text)
    with pytest.raises(InvalidInput, match=REFERENCE_FILE):
        read_reference(tmp_path, "d")
    monitor = DriftMonitor(SPEC)
    with capture_logs() as lines:
        monitor.opened("d-damaged", "d", tmp_path)
    assert lines[0]["log_level"] == "warning"
    answer(monitor, "d-damaged", "d", scores(1, 800))
    assert value("psi", model="d-damaged") is not None
    monitor.closed("d-damaged")


def test_rows_of_ids_count_their_ids_as_length() -> None:
    """A row that came as token ids has its number of ids as length, and scores that follow it are noticed."""
    monitor = DriftMonitor(SPEC)
    monitor.opened("d-ids", "d")
    answer(monitor, "d-ids", "d", scores(1, 800))
    values = np.sort(scores(2, 400))
    rows = [
        ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(), completion=(1,) * n, fingerprint="f"))
        for n in range(400)
    ]
    monitor.answered("d-ids", "d", rows, [ScoreOutcome(value=float(score)) for score in values])
    assert value("length_correlation", model="d-ids", window="current") == pytest.approx(0.98, abs=0.02)
    assert value("alarm", model="d-ids", kind="length_correlation") == 1
    monitor.closed("d-ids")


def test_disabled_and_unknown_models_cost_nothing() -> None:
    """A monitor that is off, and rows of a name that was never opened, make no series."""
    off = DriftMonitor(DriftSpec(enabled=False, reference_rows=400, window_rows=400))
    off.opened("d-off", "d")
    answer(off, "d-off", "d", scores(1, 900))
    answer(DriftMonitor(SPEC), "d-never", "d", scores(1, 900))
    assert value("psi", model="d-off") is None
    assert value("psi", model="d-never") is None
