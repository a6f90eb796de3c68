"""TRPO's step on a model: within its region, up the surrogate, exactly what it tells, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.learner.sample import Sample
from services.learner.training import Trainer
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """At temperature 0.7; the first completion has a token that does not count."""
    found = samples_from(loaded_from(folder), random_pairs(4), SCORES, temperature=0.7)
    mask = found[0].loss_mask.copy()
    mask[0] = 0
    return [replace(found[0], loss_mask=mask), *found[1:]]


def trainer_on(folder: Path, dtype: str = "float32", **algorithm: Any) -> Trainer:
    fields = {"kind": "trpo", "kl": {"coefficient": 0.0}, "critic_passes": 1, **algorithm}
    spec = run_spec(
        folder, algorithm=fields, sampling={"temperature": 0.7}, optimiser={"learning_rate": 1e-3}
    )
    return Trainer(loaded_from(folder, dtype), spec)


def distributions(trainer: Trainer, samples: list[Sample]) -> list[torch.Tensor]:
    """Log-softmax at temperature 0.7 of every completion token that counts, by the whole model."""
    found = []
    for sample in samples:
        ids = torch.tensor([*sample.prompt_ids, *sample.completion_ids], dtype=torch.long)[None]
        logits = trainer.model(input_ids=ids).logits.detach().float()[0, len(sample.prompt_ids) - 1 : -1]
        found.append((logits / 0.7).log_softmax(-1)[torch.tensor(sample.loss_mask) > 0])
    return found


@pytest.mark.parametrize("curvature_rows", [None, 2])
def test_the_step_is_what_is_told(folder: Path, samples: list[Sample], curvature_rows: int | None) -> None:
    """The exact KL of the model before to the model after is the one told, above 0 and within the radius."""
    trainer = trainer_on(folder, target_kl=0.02, curvature_rows=curvature_rows)
    before = torch.cat(distributions(trainer, samples))
    metrics = trainer.step(samples)
    after = torch.cat(distributions(trainer, samples))
    exact = float((before.exp() * (before - after)).sum(-1).mean())
    assert metrics["policy/step_accepted"] == 1
    assert metrics["policy/step_kl"] == pytest.approx(exact, rel=1e-3)
    # A quadratic step of the whole length has this KL but for its third order.
    assert 0.3 * 0.02 < exact <= 0.02
    assert metrics["loss/policy_avg"] < 0


def test_equal_advantages_leave_every_bit(folder: Path, samples: list[Sample]) -> None:
    """Scores of 0: the gradient is 0, the policy stays, no try was made."""
    trainer = trainer_on(folder)
    before = {name: value.clone() for name, value in trainer.serving_weights().items()}
    metrics = trainer.step([replace(sample, score=0.0) for sample in samples])
    assert metrics["policy/step_accepted"] == metrics["policy/step_tries"] == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.serving_weights().items())


def test_bfloat16_weights_are_the_cast_of_the_step(folder: Path, samples: list[Sample]) -> None:
    """The step is taken in float32; what is served is its cast, and the critic has learnt beside it."""
    trainer = trainer_on(folder, "bfloat16", target_kl=0.05, critic_passes=3)
    metrics = trainer.step(samples)
    assert metrics["policy/step_accepted"] == 1
    assert metrics["loss/value_avg"] > 0
    assert trainer.optimiser.matches()
    later = trainer.step(samples)
    assert later["loss/value_avg"] != metrics["loss/value_avg"]


def test_what_does_not_fit_is_told(folder: Path) -> None:
    """More than one epoch; a critic on the policy's own trunk."""
    with pytest.raises(ValueError, match="epochs stays 1"):
        trainer_on(folder, epochs=2)
    with pytest.raises(ValueError, match="a model of its own"):
        trainer_on(folder, value_model="shared")
