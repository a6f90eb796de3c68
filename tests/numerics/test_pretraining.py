"""PPO-ptx in the trainer: the gradient of text beside that of rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError, InvalidInput
from services.common.spec.run import DataSpec
from services.learner.pretraining import drawn, load_texts, text_losses
from services.learner.training import Trainer
from services.models.trunk import freeze
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

TEXTS = [np.arange(size, dtype=np.int32) + size for size in (2, 5, 9, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.mark.parametrize("budget", [16, 4096])
def test_the_loss_is_the_mean_over_all_tokens_but_the_first(folder: Path, budget: int) -> None:
    """Against the whole logits, text by text: gamma * sum of -log softmax / (1 + 4 + 8 + 2), in parts of any size."""
    model = loaded_from(folder).model
    split, head = freeze(model, 0), model.get_output_embeddings().weight
    total = sum(
        float(loss.total.detach()) for loss in text_losses(split, head, TEXTS, gamma=2.0, token_budget=budget)
    )
    expected = 0.0
    for text in TEXTS:
        ids = torch.tensor(text, dtype=torch.long)[None]
        logs = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
        expected -= float(logs.gather(1, ids[0, 1:, None]).sum().detach())
    assert total == pytest.approx(2.0 * expected / 15, rel=1e-5)


def test_draws_depend_on_seed_step_and_update_alone() -> None:
    """The same again, another elsewhere, none twice, all where more are asked for than there are."""
    many = [np.array([at, at], np.int32) for at in range(50)]
    one = drawn(many, 8, seed=1, step=2, update=0)
    assert len({int(text[0]) for text in one}) == 8
    assert all(a is b for a, b in zip(one, drawn(many, 8, seed=1, step=2, update=0), strict=True))
    for other in ({"seed": 2}, {"step": 3}, {"update": 1}):
        place: Any = {"seed": 1, "step": 2, "update": 0} | other
        assert any(a is not b for a, b in zip(one, drawn(many, 8, **place), strict=True))
    assert len(drawn(TEXTS, 8, seed=1, step=0, update=0)) == 4


def test_texts_are_learnt_beside_the_rollouts(folder: Path) -> None:
    """With scores of 0 only text teaches: its loss falls; with a coefficient of 0 nothing moves."""
    samples = samples_from(loaded_from(folder), random_pairs(4), [0.0] * 4)

    def trained(coefficient: float) -> tuple[list[float], dict[str, torch.Tensor]]:
        algorithm = {"kind": "ppo", "ptx_coefficient": coefficient, "value_coefficient": 0.0, "epochs": 1}
        data = {"prompts": "none.jsonl"} | ({"texts": "t.jsonl"} if coefficient else {})
        spec = run_spec(
            folder,
            algorithm={**algorithm, "kl": {"coefficient": 0.0}},
            data=data,
            optimiser={"learning_rate": 1e-2},
        )
        trainer = Trainer(loaded_from(folder), spec, TEXTS)
        losses = [trainer.step(samples).get("loss/ptx_avg", 0.0) for _ in range(15)]
        return losses, trainer.serving_weights()

    losses, _ = trained(27.8)
    assert losses[-1] < 0.5 * losses[0]
    _, weights = trained(0.0)
    before = Trainer(loaded_from(folder), run_spec(folder)).serving_weights()
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_texts_are_read_and_mistakes_told(folder: Path, tmp_path: Path) -> None:
    """Cut to their bound; a row without text, too short a one, and a setting without the other are one line each."""
    path, tokenizer = tmp_path / "texts.jsonl", loaded_from(folder).tokenizer
    path.write_text(json.dumps({"text": "hello there, " * 50}) + "\n")
    found = load_texts(DataSpec(prompts="p", texts=str(path), text_tokens=7), tokenizer)
    assert [len(text) for text in found] == [7]
    for row, told in (({"words": 1}, "expected a string"), ({"text": ""}, "two tokens")):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(InvalidInput, match=rf"texts\.jsonl:1: text: .*{told}"):
            load_texts(DataSpec(prompts="p", texts=str(path)), tokenizer)
    with pytest.raises(ValueError, match=r"needs data\.texts"):
        run_spec(folder, algorithm={"kind": "ppo", "ptx_coefficient": 1.0})
    with pytest.raises(ValueError, match="no text would be read"):
        run_spec(folder, data={"prompts": "p", "texts": "t"})
    spec = run_spec(
        folder, algorithm={"kind": "ppo", "ptx_coefficient": 1.0}, data={"prompts": "p", "texts": "t"}
    )
    limit = loaded_from(folder).facts.context_length
    with pytest.raises(ConfigError, match=rf"a text has {limit + 1} tokens, the model's context {limit}"):
        Trainer(loaded_from(folder), spec, [np.zeros(limit + 1, np.int32)])
