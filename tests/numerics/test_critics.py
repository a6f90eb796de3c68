"""Values: from zero, from the policy, from the reward model; on the policy's trunk or a model of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.errors import ConfigError, Mismatch, NotFound
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.reward_model import RewardModel, load_reward_model
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0]
LONGEST = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, with the policy's tokenizer, a gain and a bias."""
    made = make_tiny_reward_model(tmp_path_factory.mktemp("models") / "reward")
    model = load_reward_model(str(made), dtype="float32", threads=1, device="cpu")
    model.settings = replace(model.settings, gain=2.0, bias=-0.5)
    model.save(made)
    return made


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), random_pairs(4), SCORES, noise=0.3)


def trainer_on(folder: Path, algorithm: dict[str, Any], **tables: Any) -> Trainer:
    optimiser = {"learning_rate": 1e-3, "max_grad_norm": 1e9, **tables.pop("optimiser", {})}
    sampling = {"max_new_tokens": LONGEST}
    return Trainer(
        loaded_from(folder),
        run_spec(folder, algorithm=algorithm, optimiser=optimiser, sampling=sampling, **tables),
    )


def values_of(trainer: Trainer, samples: list[Sample]) -> list[torch.Tensor]:
    every = list(range(len(samples)))
    values = trainer._forward(samples, trainer._trunk(samples, [every]), every, gradient=False).values
    return [values[row] for row in every]


def prefix_scores(model: RewardModel, sample: Sample, count: int) -> list[float]:
    """What the reward model says of the prompt with the first 0, 1, … tokens of the completion."""
    ids = sample.completion_ids.tolist()
    rows = [model.encode_ids(sample.prompt_ids.tolist(), ids[:size]) for size in range(count)]
    return [reading.value for reading in model.read(rows)]


@pytest.mark.parametrize("start", ["shared", "policy"])
def test_values_begin_at_zero(folder: Path, samples: list[Sample], start: str) -> None:
    """On either trunk: the head is 0, weight and bias."""
    trainer = trainer_on(folder, {"kind": "ppo", "value_model": start})
    assert all(not bool(values.any()) for values in values_of(trainer, samples))


def test_values_begin_as_the_reward_models_scores(
    folder: Path, reward_folder: Path, samples: list[Sample]
) -> None:
    """The value before each token, and past the end, is gain times head plus bias of the text so far."""
    algorithm = {"kind": "ppo", "value_model": "reward_model", "score_position": "past_end"}
    trainer = trainer_on(folder, algorithm, reward_model=str(reward_folder))
    model = load_reward_model(str(reward_folder), dtype="float32", threads=1, device="cpu")
    for sample, values in zip(samples, values_of(trainer, samples), strict=True):
        # One past the end only where the completion is shorter than what may be drawn.
        assert len(values) == min(LONGEST, len(sample.completion_ids) + 1)
        expected = torch.tensor(prefix_scores(model, sample, len(values)))
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_model", ["shared", "policy"])
def test_a_model_of_its_own_leaves_the_policy_alone(
    folder: Path, samples: list[Sample], value_model: str
) -> None:
    """However the value loss weighs, the policy's weights are the same bits; on a shared trunk they are not.

    Of two updates, since a head of zeros gives its trunk no gradient; both aim at what the first values say.
    """

    def policy_after(coefficient: float) -> dict[str, torch.Tensor]:
        algorithm = {"kind": "ppo", "epochs": 2, "value_model": value_model, "value_coefficient": coefficient}
        trainer = trainer_on(folder, algorithm, optimiser={"value_learning_rate": 0.1})
        trainer.step(samples)
        return trainer.serving_weights()

    one, two = policy_after(0.0), policy_after(5.0)
    assert all(torch.equal(one[name], two[name]) for name in one) == (value_model == "policy")


@pytest.mark.parametrize("kind", ["ppo", "a2c"])
@pytest.mark.parametrize("start", ["policy", "reward_model"])
def test_a_value_model_learns(
    folder: Path, reward_folder: Path, samples: list[Sample], kind: str, start: str
) -> None:
    """On the same batch, with the policy at rest, the squared error falls to a tenth; the embeddings stay."""
    algorithm = {"kind": kind, "value_model": start, "kl": {"coefficient": 0.0}}
    algorithm |= {"clip_value": 100.0, "gae_lambda": 1.0, "epochs": 1} if kind == "ppo" else {}
    rates = {"learning_rate": 1e-12, "value_learning_rate": 1e-2}
    trainer = trainer_on(folder, algorithm, optimiser=rates, reward_model=str(reward_folder))
    assert trainer.critic is not None
    assert trainer.critic.trunk is not None
    embeddings = trainer.critic.trunk.get_input_embeddings().weight.detach().clone()
    losses = [trainer.step(samples)["loss/value_avg"] for _ in range(25)]
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(trainer.critic.trunk.get_input_embeddings().weight, embeddings)


def test_the_extra_position_is_learnt_and_told(folder: Path, samples: list[Sample]) -> None:
    """With values of 0 and lambda 1 the return past the end is the score; explained variance counts it."""
    algorithm = {
        "kind": "ppo",
        "score_position": "past_end",
        "epochs": 1,
        "kl": {"coefficient": 0.0},
        "gae_lambda": 1.0,
    }
    trainer = trainer_on(folder, algorithm)
    metrics = trainer.step(samples)
    # Half the mean square of returns that are all the completion's score.
    counts = np.array([min(LONGEST, len(one.completion_ids) + 1) for one in samples])
    assert metrics["loss/value_avg"] == pytest.approx(
        0.5 * float((counts * np.square(SCORES)).sum() / counts.sum()), rel=1e-5
    )


def test_a_value_model_that_cannot_be_is_told(folder: Path, tmp_path: Path) -> None:
    """No reward model, a rule, a folder that is not there, an encoder: one line each."""
    algorithm = {"kind": "ppo", "value_model": "reward_model"}
    with pytest.raises(ConfigError, match="value_model = reward_model, but no reward_model"):
        trainer_on(folder, algorithm)
    with pytest.raises(ConfigError, match="but reward_model = rule:length"):
        trainer_on(folder, algorithm, reward_model="rule:length")
    with pytest.raises(NotFound, match="not a reward model folder"):
        trainer_on(folder, algorithm, reward_model=str(tmp_path))
    encoder = make_tiny_reward_model(tmp_path / "mean", pooling="mean")
    with pytest.raises(Mismatch, match="is an encoder"):
        trainer_on(folder, {**algorithm, "value_model_path": str(encoder)})
