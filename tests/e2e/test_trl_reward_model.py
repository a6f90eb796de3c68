"""TRL's RewardTrainer, in its own environment, and ours, on the same pairs in the same order."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from services.learner.jobs import reward_model as job
from services.learner.jobs.comparisons import Compared, Win
from services.models.reward_model import new_reward_model
from tests.fakes.tiny_models import CHAT_TEMPLATE, make_tiny_causal, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "trl" / "bin" / "python"
BATCH, UPDATES, RATE = 4, 8, 3e-3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="make peer-trl first"),
]


def pairs() -> list[Compared]:
    """Prompts with two answers of unlike lengths each, the first of which won."""
    words, generator = ("yes", "no", "perhaps", "a ladder", "never"), np.random.default_rng(3)

    def said(least: int) -> str:
        return " ".join(generator.choice(words, size=int(generator.integers(least, least + 5))))

    return [
        Compared(messages=(("user", said(2)),), answers=(f"a {said(1)}", f"b {said(1)}"), wins=(Win(0, 1),))
        for _ in range(BATCH * UPDATES)
    ]


def row(one: Compared) -> dict[str, Any]:
    """As TRL takes it."""
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in one.answers)
    prompt = [{"role": role, "content": content} for role, content in one.messages]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def by_trl(folder: Path, model: Path, compared: list[Compared]) -> dict[str, list[float]]:
    described, out = folder / "job.json", folder / "out.json"
    rows = [row(one) for one in compared]
    files = {"model": str(model), "head": str(folder / "head.safetensors"), "out": str(out)}
    described.write_text(json.dumps({**files, "rows": rows, "batch": BATCH, "learning_rate": RATE}))
    subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("reward_model_with_trl.py")), str(described)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    found: dict[str, list[float]] = json.loads(out.read_text())
    return found


def test_updates_are_those_of_trls_trainer(tmp_path: Path) -> None:
    """From the same head eight updates of every weight have TRL's losses and end at its margins, to a thousandth.

    The template has a newline after each end token: TRL reads the last token, which is the newline.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n")
    base, compared = make_tiny_causal(tmp_path / "base", tokenizer=tokenizer), pairs()
    theirs = by_trl(tmp_path, base, compared)

    model = new_reward_model(str(base), dtype="float32", threads=1)
    with torch.no_grad():
        model.head.weight.copy_(load_file(tmp_path / "head.safetensors")["weight"])
    model.prepare_training(dropout=False)
    options = job.RewardTraining(weight_decay=0.0, train_embeddings=True)
    optimiser = job.make_optimiser(model, options, RATE)
    losses = []
    for start in range(0, len(compared), BATCH):
        batch = compared[start : start + BATCH]
        encoded = [[model.encode(answer) for answer in job.rows_of(one)] for one in batch]
        losses.append(job.update(model, batch, encoded, options, optimiser, 1.0))

    assert len(losses) == UPDATES
    assert max(losses) - min(losses) > 0.1, "nothing was learned, so that there is little to compare"
    # TRL rounds what it logs to four digits.
    np.testing.assert_allclose(losses, theirs["losses"], atol=2e-4, rtol=0)
    np.testing.assert_allclose(job.margins(model, compared), theirs["margins"], atol=1e-3, rtol=1e-3)
