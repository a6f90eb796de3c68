"""The whole demo with everything small: all steps of RLHF over real processes, to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.demo.drive import run_demo
from orchestrator.demo.options import DemoSpec
from orchestrator.demo.summary import read_summary
from orchestrator.local.options import RunOptions
from orchestrator.local.toml import to_toml
from services.common.errors import UserError
from services.models.loading import load_causal, serving_state
from services.models.manifest import entries_of, whole_digest
from tests.fakes.small_runs import rows_of, run_tables
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder, make_tiny_gpt2
from tests.fakes.tiny_runs import model_spec

PROMPTS, HELD_OUT, COMPLETIONS, STEPS = 12, 4, 2, 2
# Printable characters among random bytes: two answers rarely have the same number.
RULE = "regex:mode=count,pattern=[ -~]"
PROMISED = {
    "seconds",
    "steps",
    "win_rate",
    "win_rate_low",
    "comparisons",
    "distinct_ratio",
    "length_ratio",
    "score_before",
    "score_after",
    "sequence_kl",
    "reward_model_accuracy",
    "rollouts",
    "overhead_share",
    "peak_memory_gib",
    "tokens_per_second",
    "versions",
    "seed",
}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """run.toml with a tiny chat model, and prompts to train on and to hold out."""
    make_tiny_causal(tmp_path / "model")
    make_tiny_encoder(tmp_path / "encoder")
    rows = [
        {
            "prompt_id": f"p{at}",
            "split": "train" if at < PROMPTS else "held_out",
            "prompt": [{"role": "user", "content": f"Tell me about number {at}"}],
        }
        for at in range(PROMPTS + HELD_OUT)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = run_tables(tmp_path) | {"steps": STEPS, "sampling": {"max_new_tokens": 24}}
    del tables["reward_model"]
    path = tmp_path / "run.toml"
    path.write_text(to_toml(tables))
    return path


@pytest.mark.timeout(300)
def test_the_demo_from_pairs_to_report(run_file: Path, tmp_path: Path) -> None:
    """Answers, comparisons, reward model, PPO, evaluation and report: every file is there and the figures fit."""
    out = tmp_path / "demo"
    small = DemoSpec(
        answers=3,
        reward_base=str(tmp_path / "encoder"),
        reward_batch_pairs=4,
        annotator_rule=RULE,
        held_out_prompts=HELD_OUT,
        completions=COMPLETIONS,
        call_prompts=5,
    )
    assert run_demo(RunOptions(out=out, seed=4), small, run_file) == 0
    written = json.loads((out / "summary.json").read_text())
    assert written.keys() >= PROMISED
    summary = read_summary(out)
    assert (summary.steps, summary.seed) == (STEPS, 4)
    assert summary.comparisons == HELD_OUT * COMPLETIONS
    assert summary.rollouts.admitted == summary.rollouts.trained == 8 * STEPS
    assert sum(summary.phases.values()) <= summary.seconds
    assert summary.peak_memory_gib > 0.1
    assert [row["step"] for row in rows_of(out)] == list(range(1, STEPS + 1))
    assert len(_lines(out / "samples.jsonl")) == HELD_OUT
    assert 2 <= len(_lines(out / "pairs.jsonl")) <= 3 * PROMPTS
    ratings = json.loads((out / "ratings.json").read_text())
    assert {one["subject"] for one in ratings} == {"policy@0 (reference)", f"policy@{STEPS}"}
    reward = json.loads((out / "reward_model.json").read_text())
    assert reward["train_pairs"] + reward["held_out_pairs"] == len(_lines(out / "pairs.jsonl"))
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    published = json.loads((out / "published.json").read_text())
    trained = serving_state(load_causal(model_spec(out / "model")).model)
    assert whole_digest(entries_of(trained)) == published["digest"]
    logs = "".join(path.read_text() for path in (out / "logs").glob("*.log"))
    assert "Traceback" not in logs


@pytest.mark.timeout(120)
def test_a_model_that_cannot_be_trained_is_told_at_once(run_file: Path, tmp_path: Path) -> None:
    """By its form or its layers, in one line, before any service is started."""
    make_tiny_gpt2(tmp_path / "gpt2")
    other = RunOptions(out=tmp_path / "other", model=str(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="T5's or the Llama family's form, not GPT2LMHeadModel"):
        run_demo(other, run_file=run_file)
    deep = RunOptions(out=tmp_path / "deep", overrides=("optimiser.frozen_layers=2",))
    with pytest.raises(UserError, match=r"optimiser\.frozen_layers = 2, but .*model has 2 layers"):
        run_demo(deep, run_file=run_file)
    assert not [*tmp_path.glob("*/endpoints.json"), *tmp_path.glob("*/logs/*")]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
