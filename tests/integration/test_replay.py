"""Rollouts kept as Parquet, and a step done again from them to the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.local.in_process import run_in_process
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import write_spec
from services.common.errors import InvalidInput, NotFound
from services.common.spec.run import RunSpec
from services.learner.kept_rollouts import read_rollouts, rollout_file
from services.learner.replay import recorded, replay
from tests.fakes.small_runs import make_files, program, run_tables

pytest.importorskip("pyarrow")


def spec_of(tmp_path: Path, **tables: Any) -> RunSpec:
    """Three steps of four pairs; checkpoints after two."""
    fields: dict[str, Any] = {
        "steps": 3,
        "sampling": {"max_new_tokens": 8, "temperature_end": 0.8},
        "rollout": {"batch_groups": 4, "completions_per_prompt": 2, "keep": True},
        "algorithm": {"kind": "ppo", "epochs": 2, "minibatches": 2},
        "optimiser": {"learning_rate": 1e-3, "weight_average": 0.5},
    }
    return RunSpec.model_validate(run_tables(make_files(tmp_path)) | fields | tables)


def test_every_step_is_replayed_to_the_same_figures(tmp_path: Path) -> None:
    """From the start and from the checkpoint before it; the file has all tokens, log-probs, scores and versions."""
    import pyarrow.parquet as pq

    spec, out = spec_of(tmp_path), tmp_path / "run"
    layout = RunLayout.prepare(out, resume=False, overwrite=False)
    write_spec(layout, spec)
    run_in_process(spec, out)
    for step in (1, 2, 3):
        then, now = recorded(out, step), replay(out, step)
        same = [name for name in now if not name.startswith("time/")]
        assert {"loss/policy_avg", "loss/value_avg", "objective/kl", "sampling/temperature"} < set(same)
        assert now["grad_norm"] > 0
        assert {name: now[name] for name in same} == {name: then[name] for name in same}
    rows = pq.read_table(rollout_file(out / "rollouts", 3)).to_pylist()
    assert len(rows) == 8
    for row in rows:
        assert len(row["completion_ids"]) == len(row["behaviour_logprobs"]) == len(row["reference_logprobs"])
        assert list(json.loads(row["scores"])) == ["reward"]
        assert json.loads(row["versions"])[0][1] == 2
    assert np.array_equal(
        read_rollouts(rollout_file(out / "rollouts", 3))[0].completion_ids, rows[0]["completion_ids"]
    )
    # The averaged weights stand beside the last ones, and are others.
    weights = [(out / name / "model.safetensors").read_bytes() for name in ("model", "model-average")]
    assert weights[0] != weights[1]
    done = program("orchestrator", "replay", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "figures are the same" in done.stdout


def test_what_cannot_be_replayed_is_told(tmp_path: Path) -> None:
    """No run's folder; no rollouts kept; a step that the run does not have."""
    with pytest.raises(NotFound, match="is no run's folder"):
        recorded(tmp_path, 1)
    spec = spec_of(tmp_path, rollout={"batch_groups": 2}, steps=1)
    write_spec(RunLayout.prepare(tmp_path / "run", resume=False, overwrite=False), spec)
    with pytest.raises(NotFound, match="no rollouts of this step were kept"):
        replay(tmp_path / "run", 1)
    with pytest.raises(InvalidInput, match="the run has steps 1 to 1"):
        replay(tmp_path / "run", 2)
