"""Whole runs that train an adapter, in one process: without a reference stage, resumed, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.local.services import services_of
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from services.models.loading import load_causal, serving_state
from services.models.manifest import entries_of, whole_digest
from tests.fakes.small_runs import make_files, rows_of, small_spec, without_times
from tests.fakes.tiny_runs import model_spec
from tests.integration.test_run import check_whole, run_here

pytest.importorskip("peft")

OPTIONS = (
    "optimiser.lora.rank=4",
    "optimiser.learning_rate=0.01",
    "optimiser.gradient_checkpointing=true",
    "rollout.reference=branch",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("deliver", ["merged", "adapter"])
def test_interrupted_or_not_it_is_the_same_run(files: Path, tmp_path: Path, deliver: str) -> None:
    """Checkpoints hold the adapter alone, a resume from one goes on with the same numbers, and the run ends with a
    plain model, whose bytes published.json names, and the adapter beside it."""
    options = (*OPTIONS, f"optimiser.lora.deliver={deliver}")
    spec = small_spec(files, *options)
    assert services_of(spec) == ("policy", "reward", "learner")
    rows = run_here(spec, tmp_path / "one")
    check_whole(rows, 4)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rows[-1]["objective/kl"]) > 1e-3
    # What generates is what learns, in every step.
    assert all(row["sampling/logprob_difference"] < 1e-4 for row in rows)
    out = tmp_path / "two"
    run_here(small_spec(files, "steps=2", *options), out)
    kept = out / "checkpoints" / "step-000002"
    assert {item.name for item in kept.iterdir()} == {"adapter", "trainer", "state.json"}
    assert without_times(run_here(spec, out)) == without_times(rows_of(tmp_path / "one"))
    loaded = load_causal(model_spec(out / "model"))
    published = json.loads((out / "published.json").read_text())
    assert whole_digest(entries_of(serving_state(loaded.model))) == published["digest"]
    assert (out / "adapter" / "adapter_config.json").is_file()


def test_the_example_is_a_run(files: Path, tmp_path: Path) -> None:
    """The run file that the README names trains, on a tiny model."""
    example = Path(__file__).parents[2] / "services" / "learner" / "examples" / "lora.toml"
    tiny = [f"model.path={files / 'model'}", "model.dtype=float32", "model.threads=1", "model.device=cpu"]
    short = ["steps=1", "optimiser.frozen_layers=1", "sampling.max_new_tokens=8", "rollout.batch_groups=2"]
    spec = load_toml(example, RunSpec, [*tiny, *short, f"data.prompts={files / 'prompts.jsonl'}"])
    rows = run_here(spec, tmp_path / "run")
    assert [row["episode"] for row in rows] == [8]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
