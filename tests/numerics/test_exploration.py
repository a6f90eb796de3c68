"""Exploration: the entropy bonus and its gradient, temperature and top-p that change over the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.spec.run import SamplingSpec
from services.learner.ledger import Admitted
from services.learner.prompts import Prompt
from services.learner.rollouts import new_group
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.logprobs import token_logprobs_and_entropy
from services.models.manifest import Version
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), random_pairs(4), [1.0, -1.0, 0.5, 2.0], noise=0.3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, "each its own"])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
def test_gradients_of_logprobs_and_entropy(temperature: float | str, weights: tuple[float, float]) -> None:
    """Against autograd through whole logits, by states and head, at one temperature and at one for each token."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 8, generator=generator).requires_grad_()
    head = torch.randn(11, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, 11, (300,), generator=generator)
    heat = torch.rand(300, generator=generator) + 0.5 if isinstance(temperature, str) else temperature
    by_token = torch.randn(2, 300, generator=generator) * torch.tensor(weights)[:, None]
    logs = (states @ head.T / (heat[:, None] if isinstance(heat, torch.Tensor) else heat)).log_softmax(-1)
    expected = (logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1))
    found = token_logprobs_and_entropy(states, head, targets, heat)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def slopes(pair: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        used = [(by_token[at] * pair[at]).sum() for at in (0, 1) if weights[at]]
        return torch.autograd.grad(torch.stack(used).sum(), (states, head))

    for one, other in zip(slopes(found), slopes(expected), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def trainer_on(folder: Path, **algorithm: Any) -> Trainer:
    fields = {"kind": "ppo", "epochs": 2, "value_coefficient": 0.0, "kl": {"coefficient": 0.0}, **algorithm}
    return Trainer(loaded_from(folder), run_spec(folder, algorithm=fields, optimiser={"learning_rate": 1e-2}))


def test_the_bonus_raises_the_entropy(folder: Path, samples: list[Sample]) -> None:
    """With nothing else to learn (scores of 0) the entropy rises with it and stays without it."""
    idle = [replace(sample, score=0.0) for sample in samples]
    with_bonus, without = trainer_on(folder, entropy_coefficient=0.1), trainer_on(folder)
    told = [with_bonus.step(idle) for _ in range(8)]
    assert told[-1]["policy/entropy_avg"] > told[0]["policy/entropy_avg"] + 0.005
    rest = [without.step(idle)["policy/entropy_avg"] for _ in range(3)]
    assert rest[0] == rest[-1]
    # Of the first of two epochs it is the entropy told, the second's is a little higher.
    assert -told[0]["loss/entropy_avg"] / 0.1 == pytest.approx(told[0]["policy/entropy_avg"], rel=0.02)


def test_each_completion_is_learnt_at_the_temperature_it_was_drawn_with(
    folder: Path, samples: list[Sample]
) -> None:
    """Two temperatures in a batch: the old log-probs of each are those of a batch at that temperature alone."""
    heats = [0.5, 1.5, 0.5, 1.5]
    mixed = [replace(one, temperature=heat) for one, heat in zip(samples, heats, strict=True)]
    every = list(range(4))
    trainer = trainer_on(folder)
    found = trainer._forward(mixed, trainer._trunk(mixed, [every]), every, gradient=False).logprobs
    for heat in (0.5, 1.5):
        alone = [replace(one, temperature=heat) for one in samples]
        expected = trainer._forward(alone, trainer._trunk(alone, [every]), every, gradient=False).logprobs
        for at in every:
            if heats[at] == heat:
                torch.testing.assert_close(found[at], expected[at], atol=1e-5, rtol=1e-5)
    assert trainer.step(mixed)["sampling/temperature"] == pytest.approx(1.0)


def test_temperature_and_top_p_go_in_a_line_and_stay() -> None:
    """1.2 to 0.6 and 1 to 0.8 over three steps, then no further; by default over the whole run, or not at all."""
    spec = SamplingSpec(temperature=1.2, temperature_end=0.6, top_p_end=0.8, anneal_steps=3)
    found = [spec.at(step, 100) for step in (0, 1, 3, 50)]
    expected = [(1.2, 1.0), (1.0, 1 - 0.2 / 3), (0.6, 0.8), (0.6, 0.8)]
    assert [pytest.approx(pair) for pair in expected] == found
    assert SamplingSpec(temperature=0.7).at(50, 100) == (0.7, 1.0)
    whole = SamplingSpec(temperature=1.0, temperature_end=0.5)
    assert whole.at(4, 5) == (0.5, 1.0)
    assert whole.at(0, 1) == (1.0, 1.0)


def test_a_group_is_drawn_as_its_step_says(folder: Path) -> None:
    """What the policy is asked for at steps 0 and 4 of 5."""
    sampling = {"temperature": 1.0, "temperature_end": 0.5, "top_p_end": 0.9}
    spec = run_spec(folder, sampling=sampling, steps=5)
    prompt = Prompt("p", (), "text", np.array([1], np.int32))
    found = []
    for step in (0, 4):
        group = new_group(
            Admitted("g", 0, 0, 0), prompt, spec, run_uid="r", version=Version(1, step, "d"), step=step
        )
        found += [group.sampling.temperature, group.sampling.top_p]
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.9])
