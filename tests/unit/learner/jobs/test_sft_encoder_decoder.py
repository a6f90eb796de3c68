"""Supervised fine-tuning of an encoder-decoder: the encoder reads prompts, the decoder learns answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError
from services.learner.jobs.demonstrations import Demonstration
from services.learner.jobs.sft import Row, SftTraining, Trainee, make_optimiser, train
from services.learner.jobs.sft_job import SftJob, run_job
from tests.fakes.tiny_models import make_tiny_t5
from tests.fakes.tiny_runs import loaded_from

OPTIONS = SftTraining(learning_rate=1e-2, batch_rows=4, max_tokens=64, held_out_share=0.2)
DATA = [
    Demonstration(messages=(("user", f"say {at}"),), answer="aaaa bbbb", group=str(at)) for at in range(10)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_t5(tmp_path / "model")


def test_logprobs_are_the_models_own(folder: Path) -> None:
    """Of each answer's tokens, as transformers' forward gives them row by row."""
    model = loaded_from(folder).model
    rows = [Row((8, 9, 10, 11), 2), Row((20, 21), 1), Row((30, 31, 32, 33, 34), 3)]
    expected = []
    with torch.inference_mode():
        for row in rows:
            ids, labels = torch.tensor([row.ids[: row.start]]), torch.tensor([row.ids[row.start :]])
            logs = torch.log_softmax(model(input_ids=ids, labels=labels).logits[0], -1)
            expected += [logs[at, token] for at, token in enumerate(row.ids[row.start :])]
        found = Trainee(model).logprobs(rows)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)


def test_any_micro_batches_give_the_same_result_and_it_learns(folder: Path) -> None:
    """However it is cut, with activations kept or made anew; the loss on held-out prompts halves."""
    reports = []
    for budget, anew in ((4096, False), (1, False), (4096, True)):
        loaded = loaded_from(folder)
        options = replace(OPTIONS, micro_batch_tokens=budget, gradient_checkpointing=anew, epochs=5)
        reports.append(train(Trainee(loaded.model), loaded.tokenizer, DATA, options))
    losses = [report.loss_after for report in reports]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert losses[0] < reports[0].loss_before / 2


def test_frozen_layers_are_the_encoders_first(folder: Path) -> None:
    """Four frozen layers of three and two: the decoder's last one is trained, and the embeddings if wanted."""
    model = loaded_from(folder).model
    make_optimiser(model, replace(OPTIONS, frozen_layers=4, train_embeddings=False))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    blocks = {name.split(".layer")[0] for name in trained if ".block." in name}
    assert blocks == {"decoder.block.1"}
    assert "shared.weight" not in trained


def test_the_job_writes_a_folder_that_loads(folder: Path, tmp_path: Path) -> None:
    """Trained, saved and loaded again, its log-probs are those in the report; what is for causal models is refused."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"say {at}", "completion": "aaaa bbbb"} for at in range(10)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = SftJob(data=data, model=str(folder), out=tmp_path / "out", dtype="float32", threads=1)
    run_job(job, replace(OPTIONS, epochs=2))
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert report["loss_after"] < report["loss_before"]
    again = loaded_from(tmp_path / "out")
    ids = np.array(again.tokenizer("say 3\n")["input_ids"]).tolist()
    answer = again.tokenizer("aaaa bbbb", add_special_tokens=False)["input_ids"]
    row = Row((*ids, *answer, again.tokenizer.eos_token_id), len(ids))
    assert Trainee(again.model).loss([row], 64) == pytest.approx(report["loss_after"], rel=0.2)
    with pytest.raises(ConfigError, match=r"--lora-rank is for causal models; .* is an encoder-decoder"):
        run_job(replace(job, lora_rank=2), OPTIONS)
