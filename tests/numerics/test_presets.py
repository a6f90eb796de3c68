"""Each preset gives its source's numbers: the whitening check of nine scores, losses, discounts, controllers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from services.common.spec.algorithms import PpoSpec
from services.common.spec.presets import PRESETS
from services.common.spec.run import OptimiserSpec, RunSpec
from services.learner.algorithms.base import Rollouts
from services.learner.algorithms.kl import KlController, measured_kl
from services.learner.ledger import Admitted
from services.learner.prompts import Prompt
from services.learner.rollouts import new_group
from services.models.manifest import Version
from tests.numerics.batches import loss_at, made, rollouts, targets


def nine() -> Rollouts:
    """Completions of one token with scores 1.2 to 2.0: their rewards are the known 3x3 grid, their values 0."""
    return rollouts([[1.0]] * 9, scores=[1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])


def first_advantages(preset: str) -> torch.Tensor:
    return made(PpoSpec(preset=preset)).targets(nine(), 0.0).advantages[:3, 0]


def value_of(preset: str, value: float, goal: float) -> float:
    """The loss of one token whose value moved from 0 to `value`, without an advantage."""
    one = rollouts([[1.0]])
    return loss_at(
        made(PpoSpec(preset=preset)), one, targets(one, [[0.0]], [[goal]]), [[1.0]], [[value]]
    ).total.item()


def test_openai_2019() -> None:
    """Rewards whitened by the biased variance keep their mean: 0.0508, 0.4381, 0.8254; per minibatch.

    beta 0.15, target 6, horizon 10,000, fed with the sequence's sum; half the clipped square times 0.1.
    """
    spec = PpoSpec(preset="openai-2019")
    found = made(spec).targets(nine(), 0.0)
    torch.testing.assert_close(
        found.rewards[:3, 0], torch.tensor([0.0508, 0.4381, 0.8254]), atol=5e-5, rtol=0
    )
    # Advantages are whitened again, without their mean: (1.2 - 1.6) / sqrt(0.6 / 9).
    assert found.advantages[0, 0].item() == pytest.approx(-0.4 / (0.6 / 9) ** 0.5, abs=1e-4)
    assert made(spec).per_minibatch
    assert (spec.missing_end_penalty, spec.missing_end_replaces) == (0.0, False)
    assert KlController.start(spec.kl).updated(6.6, 64).coefficient == pytest.approx(0.150096)
    assert value_of("openai-2019", 0.5, 1.0) == pytest.approx(0.1 * 0.32)
    assert (spec.epochs, spec.minibatches, spec.gamma, spec.gae_lambda) == (4, 1, 1.0, 0.95)


def test_instructgpt() -> None:
    """beta 0.02 fixed, one inner epoch of eight minibatches, no discount."""
    spec = PpoSpec(preset="instructgpt")
    assert KlController.start(spec.kl).updated(60.0, 512).coefficient == 0.02
    assert (spec.epochs, spec.minibatches, spec.gamma) == (1, 8, 1.0)
    assert first_advantages("instructgpt")[0].item() == pytest.approx(-0.4 / (0.6 / 9) ** 0.5, abs=1e-4)


def test_trl() -> None:
    """Bessel's correction over the whole batch: 0.1394 - 1.6; rewards as they are; beta 0.05; 0.1 of the value loss."""
    spec = PpoSpec(preset="trl")
    torch.testing.assert_close(
        first_advantages("trl"), torch.tensor([0.1394, 0.5046, 0.8697]) - 1.6, atol=5e-5, rtol=0
    )
    assert made(spec).targets(nine(), 0.0).rewards[0].item() == pytest.approx(1.2)
    assert not made(spec).per_minibatch
    assert KlController.start(spec.kl).updated(60.0, 512).coefficient == 0.05
    assert value_of("trl", 0.5, 1.0) == pytest.approx(0.1 * 0.32)
    assert (spec.epochs, spec.missing_end_replaces) == (4, False)
    assert (spec.score_position, spec.value_model) == ("past_end", "reward_model")


def test_trlx() -> None:
    """Bessel's correction per minibatch, the whole value loss, the controller fed with summed k3."""
    spec = PpoSpec(preset="trlx")
    assert first_advantages("trlx")[0].item() == pytest.approx(0.1394 - 1.6, abs=5e-5)
    assert made(spec).per_minibatch
    assert value_of("trlx", 0.5, 1.0) == pytest.approx(0.32)
    ones = torch.ones(1, 1)
    # x = 1: exp(-1) - 1 + 1.
    assert measured_kl(spec.kl, ones, torch.zeros(1, 1), ones) == pytest.approx(0.367879, abs=1e-6)
    assert spec.kl.kind == "adaptive"


def test_rl4lms() -> None:
    """Half the plain square, gamma 0.99, divided by the deviation, beta by the mean KL of a token with gain 0.1."""
    spec = PpoSpec(preset="rl4lms")
    assert value_of("rl4lms", 0.5, 1.0) == pytest.approx(0.5 * 0.25)
    torch.testing.assert_close(
        first_advantages("rl4lms"), torch.tensor([-1.4606, -1.0954, -0.7303]), atol=5e-5, rtol=0
    )
    two = made(spec).targets(rollouts([[1.0, 1.0]], scores=[1.0]), 0.0)
    # Values are 0: the first return is 0.99 * 0.95 of what comes after it.
    assert two.returns[0].tolist() == pytest.approx([0.99 * 0.95, 1.0])
    ratios = torch.tensor([[2.0, 4.0]])
    assert measured_kl(spec.kl, ratios, torch.zeros(1, 2), torch.ones(1, 2)) == pytest.approx(3.0)
    start = KlController.start(spec.kl)
    assert start.updated(3.0, 64).coefficient == pytest.approx(start.coefficient * (1 + 0.1 * 0.2))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_given_field_wins_over_the_preset(preset: str) -> None:
    """Whole: a given KL table is not mixed with the preset's."""
    spec = PpoSpec.model_validate({"preset": preset, "gamma": 0.5, "kl": {"coefficient": 0.7}})
    assert spec.gamma == 0.5
    assert (spec.kl.coefficient, spec.kl.kind, spec.kl.gain) == (0.7, "fixed", None)
    assert spec.value_coefficient == PpoSpec(preset=preset).value_coefficient


def test_an_unknown_preset_is_refused() -> None:
    """By its own field."""
    with pytest.raises(ValueError, match="preset"):
        PpoSpec.model_validate({"preset": "nobody"})


def run_with(preset: str, **tables: Any) -> RunSpec:
    fields = {"model": {"path": "m"}, "data": {"prompts": "p"}, "algorithm": {"preset": preset}, **tables}
    return RunSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("preset", "optimiser", "sampling"),
    [
        (
            "openai-2019",
            {
                "learning_rate": 1e-5,
                "eps": 1e-5,
                "eps_form": "tensorflow",
                "schedule": "linear",
                "max_grad_norm": 1e30,
            },
            {"temperature": 0.7, "fixed_length": True},
        ),
        (
            "instructgpt",
            {"schedule": "constant", "warmup_steps": 10, "weight_average": 0.992, "max_grad_norm": 1.0},
            {"temperature": 1.0},
        ),
        (
            "trl",
            {"learning_rate": 3e-6, "eps": 1e-8, "schedule": "linear", "max_grad_norm": 1e30},
            {"temperature": 0.7},
        ),
        (
            "trlx",
            {"betas": (0.9, 0.95), "schedule": "constant", "max_grad_norm": 1e30},
            {"temperature": 1.0},
        ),
        ("rl4lms", {"max_grad_norm": 0.5}, {"temperature": 1.0, "fixed_length": False}),
    ],
)
def test_a_preset_sets_what_stands_around_the_algorithm(
    preset: str, optimiser: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Rate, schedule, Adam's eps and betas, clipping, averaging; temperature and length."""
    run = run_with(preset)
    assert {name: getattr(run.optimiser, name) for name in optimiser} == optimiser
    assert {name: getattr(run.sampling, name) for name in sampling} == sampling
    # Written out and read again, as run.toml is, it is the same.
    assert RunSpec.model_validate(run.model_dump(mode="json", exclude_none=True)) == run


def test_what_is_given_around_the_algorithm_wins() -> None:
    """In either spelling of a name, or as a table read before; the rest is the preset's."""
    for given in ({"max_grad_norm": 2.0}, {"maxGradNorm": 2.0}, OptimiserSpec(max_grad_norm=2.0)):
        assert run_with("rl4lms", optimiser=given).optimiser.max_grad_norm == 2.0
    run = run_with("openai-2019", sampling={"temperature": 1.0})
    assert (run.sampling.temperature, run.sampling.fixed_length) == (1.0, True)


def test_a_fixed_length_is_asked_of_the_policy() -> None:
    """No end token before the last: as many new tokens at least as at most."""
    run = run_with("openai-2019", sampling={"max_new_tokens": 24})
    admitted, prompt = Admitted("g", 0, 0, 0), Prompt("p", (), "text", np.array([1], np.int32))
    group = new_group(admitted, prompt, run, run_uid="r", version=Version(1, 0, "d"), step=0)
    assert (group.sampling.min_new_tokens, group.sampling.max_new_tokens) == (24, 24)
