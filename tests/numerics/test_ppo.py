"""PPO's losses and targets, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.run import PpoSpec
from services.learner.algorithms import ppo
from services.learner.algorithms.masked import whiten

SPEC = PpoSpec(clip_ratio=0.2, clip_value=0.2)


def policy_losses(
    ratios: list[float], advantages: list[float], mask: list[float] | None = None
) -> ppo.Losses:
    """Losses at these ratios, with values that cost nothing."""
    zeros = torch.zeros(len(ratios))
    return ppo.losses(
        torch.tensor(ratios).log(),
        zeros,
        zeros,
        zeros,
        torch.tensor(advantages),
        zeros,
        torch.tensor(mask) if mask else torch.ones(len(ratios)),
        SPEC,
    )


def value_losses(value: float, old: float, goal: float) -> ppo.Losses:
    """Losses at this value, with a ratio of 1 and no advantage."""
    zero = torch.zeros(1)
    return ppo.losses(
        zero,
        torch.tensor([value]),
        zero,
        torch.tensor([old]),
        zero,
        torch.tensor([goal]),
        torch.ones(1),
        SPEC,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 3.0, -3.0, 0),  # nothing moved yet
        (1.5, 1.0, -1.2, 1),  # upper edge: max(-1.5, -1.2)
        (0.5, -1.0, 0.8, 1),  # lower edge: max(0.5, 0.8)
        (0.5, 1.0, -0.5, 0),  # a good token made rarer is not clipped: max(-0.5, -0.8)
        (1.5, -1.0, 1.5, 0),  # a bad token made likelier neither: max(1.5, 1.2)
        (1.2, 2.0, -2.4, 0),  # on the edge
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, clipped: int) -> None:
    """max(-A rho, -A clip(rho, 0.8, 1.2)), and whether the clip decided."""
    found = policy_losses([ratio], [advantage])
    assert found.policy.item() == pytest.approx(loss, abs=1e-6)
    # At 1.2 itself rounding may fall on either side; the loss is the same.
    if ratio != 1.2:
        assert found.clipped.item() == clipped
    assert found.ratio.item() == pytest.approx(ratio)
    assert found.approx_kl.item() == pytest.approx(0.5 * math.log(ratio) ** 2, abs=1e-6)


def test_no_gradient_past_the_clip_and_minus_the_advantage_at_ratio_one() -> None:
    """d loss / d log pi is -A rho inside the clip, 0 where the clip decides."""
    logprobs = torch.tensor([0.0, math.log(1.5)], requires_grad=True)
    zeros = torch.zeros(2)
    found = ppo.losses(logprobs, zeros, zeros, zeros, torch.tensor([3.0, 1.0]), zeros, torch.ones(2), SPEC)
    found.policy.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-3.0, 0.0]))


@pytest.mark.parametrize(
    ("value", "goal", "loss", "clipped"),
    [
        (0.5, 1.0, 0.32, 1),  # bounded to 0.2: max(0.25, 0.64) / 2
        (0.5, 0.0, 0.125, 0),  # bounded to 0.2: max(0.25, 0.04) / 2
        (0.1, 1.0, 0.405, 0),  # inside the clip: 0.81 / 2
        (-0.5, -1.0, 0.32, 1),  # the other edge
    ],
)
def test_value_loss_is_the_larger_of_two_halves(value: float, goal: float, loss: float, clipped: int) -> None:
    """1/2 max((V - R)^2, (clip(V, -0.2, 0.2) - R)^2) around an old value of 0."""
    found = value_losses(value, 0.0, goal)
    assert found.value.item() == pytest.approx(loss, abs=1e-6)
    assert found.value_clipped.item() == clipped


def test_sums_leave_out_masked_tokens() -> None:
    """A masked token adds to no sum: only the first token's -1.2 and ratio 1.5 remain."""
    found = policy_losses([1.5, 9.0], [1.0, -50.0], [1.0, 0.0])
    assert found.policy.item() == pytest.approx(-1.2, abs=1e-6)
    assert found.clipped.item() == 1
    assert found.ratio.item() == pytest.approx(1.5)
    assert found.approx_kl.item() == pytest.approx(0.5 * math.log(1.5) ** 2)


def rollouts() -> ppo.Rollouts:
    """Two completions of 2 and 1 tokens."""
    return ppo.Rollouts(
        old_logprobs=torch.tensor([[-1.0, -2.0], [-0.5, 0.0]]),
        reference_logprobs=torch.tensor([[-1.5, -1.0], [-0.7, 0.0]]),
        old_values=torch.tensor([[0.3, 0.1], [0.2, 55.0]]),
        mask=torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
        scores=torch.tensor([1.0, -2.0]),
    )


def test_targets() -> None:
    """beta = 0.1, kl = (0.5, -1), (0.2): r = (-0.05, 1.1), (-2.02).

    Row 0: A_1 = 1.1 - 0.1 = 1.0; A_0 = -0.05 + 0.1 - 0.3 + 0.95 * 1.0 = 0.70; returns = A + V = (1.0, 1.1).
    Row 1: A_0 = -2.02 - 0.2 = -2.22; return -2.02. Advantages are whitened after the returns are taken.
    """
    spec = PpoSpec(gamma=1.0, gae_lambda=0.95, whiten_advantages=False)
    found = ppo.targets(rollouts(), spec, 0.1)
    for matrix, expected in (
        (found.kl, [[0.5, -1.0], [0.2, 0.0]]),
        (found.rewards, [[-0.05, 1.1], [-2.02, 0.0]]),
        (found.advantages, [[0.7, 1.0], [-2.22, 0.0]]),
        (found.returns, [[1.0, 1.1], [-2.02, 0.0]]),
    ):
        torch.testing.assert_close(matrix, torch.tensor(expected), atol=1e-6, rtol=0)
    whitened = ppo.targets(rollouts(), spec.model_copy(update={"whiten_advantages": True}), 0.1)
    torch.testing.assert_close(whitened.returns, found.returns)
    torch.testing.assert_close(whitened.advantages, whiten(found.advantages, rollouts().mask))
    assert whitened.advantages.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_whitened_rewards_keep_their_mean() -> None:
    """Rewards of mean (-0.05 + 1.1 - 2.02) / 3 = -0.3233 keep it when whitened; their deviation becomes 1."""
    found = ppo.targets(rollouts(), PpoSpec(whiten_rewards=True), 0.1)
    kept = found.rewards[rollouts().mask.bool()]
    assert kept.mean().item() == pytest.approx(-0.323333, abs=1e-5)
    assert kept.std().item() == pytest.approx(1.0, abs=1e-5)
