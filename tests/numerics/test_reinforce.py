"""RLOO, REINFORCE++ and A2C, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.algorithms import A2cSpec, KlSpec, ReinforcePlusPlusSpec, RlooSpec
from services.learner.algorithms.base import Current, Rollouts
from tests.numerics.batches import loss_at, made, rollouts, targets, whole


def pair() -> Rollouts:
    """Two completions of one prompt: KL 0.5 - 1 = -0.5 in the first, 0.2 in the second."""
    return rollouts(
        [[1.0, 1.0], [1.0, 0.0]],
        old=[[-1.0, -2.0], [-0.5, 0.0]],
        reference=[[-1.5, -1.0], [-0.7, 3.0]],
        values=[[0.3, 0.1], [0.2, 55.0]],
        scores=[1.0, -2.0],
        groups=[4, 4],
    )


def test_rloo_advantages() -> None:
    """beta 0.1: rewards 1 + 0.05 = 1.05 and -2 - 0.02 = -2.02; each less the other, 3.07 and -3.07."""
    found = made(RlooSpec()).targets(pair(), 0.1)
    torch.testing.assert_close(found.advantages, torch.tensor([[3.07, 3.07], [-3.07, 0.0]]))
    torch.testing.assert_close(found.rewards, torch.tensor([[1.05, 1.05], [-2.02, 0.0]]))
    torch.testing.assert_close(found.returns, found.rewards)
    assert found.metrics["reward"] == -0.5
    normalised = made(RlooSpec(normalize_advantages=True)).targets(pair(), 0.1)
    scaled = 3.07 / (3.07 * math.sqrt(2) + 1e-4)
    assert normalised.advantages[0, 0].item() == pytest.approx(scaled, abs=1e-6)


def test_rloo_takes_the_completion_for_one_action() -> None:
    """Ratios 1.1 * 1.05 = 1.155 and 0.5 (clipped to 0.8 for a negative advantage): (-2 * 1.155 + 1 * 0.8) / 2."""
    batch = pair()
    aims = targets(batch, [[2.0, 2.0], [-1.0, 0.0]])
    found = loss_at(made(RlooSpec()), batch, aims, [[1.1, 1.05], [0.5, 7.0]])
    assert found.total.item() == pytest.approx((-2 * 1.155 + 0.8) / 2, abs=1e-5)
    assert found.metrics["clip_ratio/low_mean"].item() == pytest.approx(0.5)
    assert found.metrics["clip_ratio/high_mean"].item() == 0
    assert found.metrics["val/ratio"].item() == pytest.approx((1.155 + 0.5) / 2)
    squares = math.log(1.155) ** 2 + math.log(0.5) ** 2
    assert found.metrics["policy/approxkl_avg"].item() == pytest.approx(squares / 4, abs=1e-5)
    high = loss_at(made(RlooSpec(epsilon_high=0.1)), batch, aims, [[1.1, 1.05], [1.0, 7.0]])
    assert high.total.item() == pytest.approx((-2 * 1.1 + 1) / 2, abs=1e-5)


def test_rloo_importance_is_a_factor_of_the_completion() -> None:
    """A factor of 0.5 on the first completion halves its loss: (-2 * 0.5 + 1) / 2 = 0."""
    batch = rollouts([[1.0, 1.0], [1.0, 0.0]], importance=[[0.5, 0.5], [1.0, 1.0]])
    aims = targets(batch, [[2.0, 2.0], [-1.0, 0.0]])
    assert loss_at(made(RlooSpec()), batch, aims, [[1.0, 1.0], [1.0, 1.0]]).total.item() == pytest.approx(0.0)


def test_rloo_defaults_are_those_of_trl() -> None:
    """Two completions, beta 0.05, epsilon 0.2, advantages as they are."""
    spec = RlooSpec()
    assert (spec.num_generations, spec.beta, spec.epsilon, spec.normalize_advantages) == (2, 0.05, 0.2, False)
    assert (spec.penalty.placement, spec.penalty.estimator, spec.penalty.coefficient) == (
        "reward",
        "k1",
        0.05,
    )


def test_reinforce_plus_plus_advantages() -> None:
    """beta 0.1: r = (-0.05, 1.1), (-2.02); returns (1.05, 1.1), (-2.02), whitened with a third of the squares.

    With gamma 0.5 the first return is -0.05 + 0.55 = 0.5.
    """
    spec = ReinforcePlusPlusSpec()
    found = made(spec).targets(pair(), 0.1)
    torch.testing.assert_close(found.returns, torch.tensor([[1.05, 1.1], [-2.02, 0.0]]))
    values = [1.05, 1.1, -2.02]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    expected = [(value - mean) / deviation for value in values]
    torch.testing.assert_close(found.advantages, torch.tensor([expected[:2], [expected[2], 0.0]]))
    halved = made(ReinforcePlusPlusSpec(gamma=0.5)).targets(pair(), 0.1)
    assert halved.returns[0, 0].item() == pytest.approx(0.5)


def test_reinforce_plus_plus_baseline_takes_the_groups_mean_away() -> None:
    """Scores 1 and -2 become 1.5 and -1.5 before they are spread over tokens."""
    found = made(ReinforcePlusPlusSpec(baseline=True)).targets(pair(), 0.0)
    torch.testing.assert_close(found.returns, torch.tensor([[1.5, 1.5], [-1.5, 0.0]]))


def test_reinforce_plus_plus_loss_is_the_clipped_surrogate() -> None:
    """Ratios 1.5 and 1 at advantages 1 and -1, over three tokens: (-1.2 - 1 + 1) / 3."""
    batch = pair()
    aims = targets(batch, [[1.0, 1.0], [-1.0, 0.0]])
    found = loss_at(made(ReinforcePlusPlusSpec()), batch, aims, [[1.5, 1.0], [1.0, 7.0]])
    assert found.total.item() == pytest.approx((-1.2 - 1 + 1) / 3, abs=1e-6)
    spec = ReinforcePlusPlusSpec(kl=KlSpec(estimator="k2", placement="loss"))
    with_kl = loss_at(made(spec), batch, targets(batch, [[0.0] * 2] * 2, beta=0.3), [[1.0, 1.0], [1.0, 7.0]])
    assert with_kl.total.item() == pytest.approx(0.3 * 0.5 * (0.25 + 1 + 0.04) / 3, abs=1e-6)


def test_a2c_advantages_are_returns_less_values() -> None:
    """beta 0.1, lambda 1: returns (1.05, 1.1), (-2.02) less values (0.3, 0.1), (0.2); lambda 0 gives the TD errors."""
    found = made(A2cSpec()).targets(pair(), 0.1)
    torch.testing.assert_close(found.returns, torch.tensor([[1.05, 1.1], [-2.02, 0.0]]))
    torch.testing.assert_close(found.advantages, torch.tensor([[0.75, 1.0], [-2.22, 0.0]]))
    errors = made(A2cSpec(gae_lambda=0.0, gamma=0.5)).targets(pair(), 0.1)
    torch.testing.assert_close(errors.advantages, torch.tensor([[-0.05 + 0.05 - 0.3, 1.0], [-2.22, 0.0]]))
    assert made(A2cSpec(whiten_advantages=True)).targets(
        pair(), 0.1
    ).advantages.sum().item() == pytest.approx(0, abs=1e-6)


def test_a2c_loss_and_its_gradient() -> None:
    """mean(-A log pi) + 0.5 mean (V - R)^2 over three tokens; d / d log pi = -A / 3, importance included."""
    batch = rollouts([[1.0, 1.0], [1.0, 0.0]], importance=[[1.0, 2.0], [1.0, 1.0]])
    aims = targets(batch, [[3.0, -1.5], [6.0, 9.0]], [[1.0, 2.0], [3.0, 9.0]])
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -9.0]], requires_grad=True)
    values = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    found = made(A2cSpec()).loss(Current(logprobs, values), whole(batch, aims))
    policy, value = (3.0 - 6.0 + 3.0) / 3, (1 + 1 + 4) / 3
    assert found.metrics["loss/policy_avg"].item() == pytest.approx(policy, abs=1e-6)
    assert found.metrics["loss/value_avg"].item() == pytest.approx(value)
    assert found.total.item() == pytest.approx(policy + 0.5 * value, abs=1e-6)
    found.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, 1.0], [-2.0, 0.0]]))


def test_a2c_takes_one_step_and_may_carry_its_kl_in_the_loss() -> None:
    """More epochs are refused; k2 in the loss adds beta * mean x^2 / 2 = 0.3 * 1/2 * 1.29 / 3."""
    with pytest.raises(ValueError, match="one step"):
        A2cSpec(epochs=2)
    batch, spec = pair(), A2cSpec(kl=KlSpec(estimator="k2", placement="loss"))
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    found = loss_at(
        made(spec), batch, targets(batch, zeros, zeros, beta=0.3), [[1.0, 1.0], [1.0, 7.0]], zeros
    )
    assert found.total.item() == pytest.approx(0.3 * 0.5 * (0.25 + 1 + 0.04) / 3, abs=1e-6)
