"""What the chaos run says of checkpoints: nothing of a good run, a sentence of one that holds something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.local.in_process import run_in_process
from tests.chaos.checkpoint import wrong_with_checkpoints
from tests.fakes.small_runs import make_files, small_spec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pytest.importorskip("pyarrow")
    run_in_process(small_spec(make_files(folder), "rollout.keep=true"), folder / "out")
    # As `trimtab train` leaves it.
    shutil.copy(folder / "run.toml", folder / "out" / "run.toml")
    return folder / "out"


def test_a_good_run(run: Path) -> None:
    """Loads, holds what was published, and trains its last step once more to the same figures."""
    assert wrong_with_checkpoints(run) == []


def test_a_checkpoint_that_holds_something_else(run: Path, tmp_path: Path) -> None:
    """A weight that differs from the published one; a file that ends half-way; a step that no figure fits."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = copy / "checkpoints" / "step-000004" / "trainer" / "state.pt"
    state = torch.load(file, weights_only=True)
    masters = next(value for value in _tensors(state) if value.is_floating_point() and value.numel() > 100)
    masters += 1.0
    torch.save(state, file)
    [told] = wrong_with_checkpoints(copy)
    assert told.startswith("step-000004 holds ")
    file.write_bytes(file.read_bytes()[:-500])
    [told] = wrong_with_checkpoints(copy)
    assert told.startswith("the last checkpoint does not load: checkpoint ")


def test_a_step_that_comes_out_otherwise(run: Path, tmp_path: Path) -> None:
    """The last step's figures as recorded are compared one by one."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["loss/policy_avg"] += 0.5
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [told] = wrong_with_checkpoints(copy)
    assert told.startswith("step 4 done again differs in loss/policy_avg: ")


def _tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for value in inner for tensor in _tensors(value)]
