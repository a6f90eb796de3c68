"""PPO's losses and targets, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from services.common.spec.algorithms import KlSpec, PpoSpec
from services.learner.algorithms.base import Current, Loss, Part, Rollouts
from services.learner.algorithms.masked import whiten
from tests.numerics.batches import loss_at, made, rollouts, targets, whole

SPEC = PpoSpec(clip_ratio=0.2, clip_value=0.2, value_coefficient=0.1)


def policy_loss(ratio: float, advantage: float, spec: PpoSpec = SPEC) -> Loss:
    """One token at this ratio, with a value that costs nothing."""
    batch = rollouts([[1.0]])
    return loss_at(made(spec), batch, targets(batch, [[advantage]]), [[ratio]])


def value_loss(value: float, old: float, goal: float, spec: PpoSpec = SPEC) -> Loss:
    """One token at this value, with a ratio of 1 and no advantage."""
    batch = rollouts([[1.0]], values=[[old]])
    return loss_at(made(spec), batch, targets(batch, [[0.0]], [[goal]]), [[1.0]], [[value]])


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
    found = policy_loss(ratio, advantage)
    assert found.total.item() == pytest.approx(loss, abs=1e-6)
    assert found.metrics["loss/policy_avg"].item() == pytest.approx(loss, abs=1e-6)
    # At 1.2 itself rounding may fall on either side; the loss is the same.
    if ratio != 1.2:
        assert found.metrics["policy/clipfrac_avg"].item() == clipped
    assert found.metrics["val/ratio"].item() == pytest.approx(ratio)
    assert found.metrics["policy/approxkl_avg"].item() == pytest.approx(0.5 * math.log(ratio) ** 2, abs=1e-6)


def test_no_gradient_past_the_clip_and_minus_the_advantage_at_ratio_one() -> None:
    """d loss / d log pi is -A rho / tokens inside the clip, 0 where the clip decides."""
    logprobs = torch.tensor([[0.0, math.log(1.5)]], requires_grad=True)
    batch = rollouts([[1.0, 1.0]])
    part = whole(batch, targets(batch, [[3.0, 1.0]]))
    made(SPEC).loss(Current(logprobs, torch.zeros(1, 2)), part).total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.5, 0.0]]))


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
    """1/2 max((V - R)^2, (clip(V, -0.2, 0.2) - R)^2) around an old value of 0, times c_v in the loss."""
    found = value_loss(value, 0.0, goal)
    assert found.metrics["loss/value_avg"].item() == pytest.approx(loss, abs=1e-6)
    assert found.metrics["val/clipfrac_avg"].item() == clipped
    assert found.total.item() == pytest.approx(0.1 * loss, abs=1e-6)


def test_squared_value_loss_has_no_half_and_no_clip() -> None:
    """RL4LMs: (0.5 - 1)^2 = 0.25, where the clipped form gives 0.32."""
    found = value_loss(0.5, 0.0, 1.0, SPEC.model_copy(update={"value_loss": "squared"}))
    assert found.metrics["loss/value_avg"].item() == pytest.approx(0.25)
    assert found.metrics["val/clipfrac_avg"].item() == 0


def test_masked_tokens_add_to_nothing() -> None:
    """Only the first token's -1.2 and ratio 1.5 remain, and it is the mean over one token."""
    batch = rollouts([[1.0, 0.0]], values=[[0.0, 5.0]])
    found = loss_at(
        made(SPEC), batch, targets(batch, [[1.0, -50.0]], [[0.0, 90.0]]), [[1.5, 9.0]], [[0.0, 7.0]]
    )
    assert found.total.item() == pytest.approx(-1.2, abs=1e-6)
    for name, value in (
        ("policy/clipfrac_avg", 1.0),
        ("val/ratio", 1.5),
        ("loss/value_avg", 0.0),
        ("val/clipfrac_avg", 0.0),
        ("policy/approxkl_avg", 0.5 * math.log(1.5) ** 2),
    ):
        assert found.metrics[name].item() == pytest.approx(value), name


def test_importance_multiplies_the_policy_loss_alone() -> None:
    """A factor of 2 doubles -1.2 and leaves the value's 0.1 * 0.32."""
    batch = rollouts([[1.0]], importance=[[2.0]])
    found = loss_at(made(SPEC), batch, targets(batch, [[1.0]], [[1.0]]), [[1.5]], [[0.5]])
    assert found.total.item() == pytest.approx(-2.4 + 0.032, abs=1e-6)


def test_kl_in_the_loss() -> None:
    """beta 0.5 and log pi - log pi_ref = ln 1.5 + 0.3 at advantage 0: k2 gives 0.5 * 1/2 (0.7055)^2 = 0.12443."""
    spec = PpoSpec(kl=KlSpec(estimator="k2", placement="loss"))
    batch = rollouts([[1.0]], old=[[-1.0]], reference=[[-1.3]])
    found = loss_at(made(spec), batch, targets(batch, [[0.0]], beta=0.5), [[1.5]])
    assert found.total.item() == pytest.approx(0.25 * (math.log(1.5) + 0.3) ** 2, abs=1e-6)
    aims = made(spec).targets(batch, 0.5)
    assert aims.kl.item() == 0
    assert aims.rewards.item() == 0


def two_rows() -> Rollouts:
    """Two completions of 2 and 1 tokens."""
    return rollouts(
        [[1.0, 1.0], [1.0, 0.0]],
        old=[[-1.0, -2.0], [-0.5, 0.0]],
        reference=[[-1.5, -1.0], [-0.7, 0.0]],
        values=[[0.3, 0.1], [0.2, 55.0]],
        scores=[1.0, -2.0],
    )


def test_targets() -> None:
    """beta = 0.1, kl = (0.5, -1), (0.2): r = (-0.05, 1.1), (-2.02).

    Row 0: A_1 = 1.1 - 0.1 = 1.0; A_0 = -0.05 + 0.1 - 0.3 + 0.95 * 1.0 = 0.70; returns = A + V = (1.0, 1.1).
    Row 1: A_0 = -2.02 - 0.2 = -2.22; return -2.02. Advantages are whitened after the returns are taken.
    """
    batch = two_rows()
    spec = PpoSpec(gamma=1.0, gae_lambda=0.95, whiten_advantages=False)
    found = made(spec).targets(batch, 0.1)
    for matrix, expected in (
        (found.kl, [[0.5, -1.0], [0.2, 0.0]]),
        (found.rewards, [[-0.05, 1.1], [-2.02, 0.0]]),
        (found.advantages, [[0.7, 1.0], [-2.22, 0.0]]),
        (found.returns, [[1.0, 1.1], [-2.02, 0.0]]),
    ):
        torch.testing.assert_close(matrix, torch.tensor(expected), atol=1e-6, rtol=0)
    whitened = made(spec.model_copy(update={"whiten_advantages": True})).targets(batch, 0.1)
    torch.testing.assert_close(whitened.returns, found.returns)
    torch.testing.assert_close(whitened.advantages, whiten(found.advantages, batch.mask))
    assert whitened.advantages.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_discount_and_lambda_stand_where_they_belong() -> None:
    """gamma 0.5, lambda 0.4, row 0: A_0 = -0.05 + 0.5 * 0.1 - 0.3 + 0.2 * 1.0 = -0.1."""
    spec = PpoSpec(gamma=0.5, gae_lambda=0.4, whiten_advantages=False)
    found = made(spec).targets(two_rows(), 0.1)
    torch.testing.assert_close(found.advantages[0], torch.tensor([-0.1, 1.0]))


def test_whitened_rewards_keep_their_mean() -> None:
    """Rewards of mean (-0.05 + 1.1 - 2.02) / 3 = -0.3233 keep it when whitened; their deviation becomes 1."""
    batch = two_rows()
    found = made(PpoSpec(whiten_rewards=True)).targets(batch, 0.1)
    kept = found.rewards[batch.mask.bool()]
    assert kept.mean().item() == pytest.approx(-0.323333, abs=1e-5)
    assert kept.std().item() == pytest.approx(1.0, abs=1e-5)


def past_the_end() -> Rollouts:
    """Two tokens of log-ratio 0.5 and 0.25 to the reference, score 2; values 1, 0.5 and, past the end, 0.25."""
    batch = rollouts(
        [[1.0, 1.0, 0.0]],
        old=[[-1.0, -1.0, 0.0]],
        reference=[[-1.5, -1.25, 0.0]],
        values=[[1.0, 0.5, 0.25]],
        scores=[2.0],
    )
    return replace(batch, value_mask=torch.ones(1, 3))


def test_a_score_past_the_end_by_hand() -> None:
    """Rewards -0.05, -0.025, 2 with beta 0.1; gamma 0.5, lambda 1, so that returns are discounted rewards.

    Returns 2, -0.025 + 1 = 0.975, -0.05 + 0.4875 = 0.4375; the position past the end has no advantage.
    """
    spec = PpoSpec(gamma=0.5, gae_lambda=1.0, whiten_advantages=False, kl=KlSpec(coefficient=0.1))
    found = made(spec).targets(past_the_end(), 0.1)
    torch.testing.assert_close(found.rewards, torch.tensor([[-0.05, -0.025, 2.0]]))
    torch.testing.assert_close(found.returns, torch.tensor([[0.4375, 0.975, 2.0]]))
    torch.testing.assert_close(found.advantages, torch.tensor([[-0.5625, 0.475, 0.0]]))


def test_advantages_are_whitened_over_tokens_and_rewards_over_values() -> None:
    """Two advantages become +-1 / sqrt(2) (unbiased); three rewards keep their mean of 1.925 / 3."""
    spec = PpoSpec(gamma=0.5, gae_lambda=1.0, whiten_rewards=True, kl=KlSpec(coefficient=0.1))
    found = made(spec).targets(past_the_end(), 0.1)
    torch.testing.assert_close(
        found.advantages.abs(), torch.tensor([[0.5**0.5, 0.5**0.5, 0.0]]), atol=1e-5, rtol=0
    )
    assert found.rewards.mean().item() == pytest.approx(1.925 / 3, abs=1e-6)
    assert found.rewards.std().item() == pytest.approx(1, abs=1e-5)


def test_the_value_loss_is_a_mean_over_values_and_the_policys_over_tokens() -> None:
    """Errors 1, 1 and 2: half of 6 over 3 values; the policy's advantages 1 and 1 over 2 tokens."""
    batch = past_the_end()
    aims = targets(batch, [[1.0, 1.0, 0.0]], [[2.0, 1.5, 2.25]])
    part = Part(batch, aims, tokens=2.0, rows=1, values=3.0)
    spec = PpoSpec(value_loss="clipped", clip_value=100.0)
    loss = made(spec).loss(Current(batch.old_logprobs, batch.old_values), part)
    assert loss.metrics["loss/value_avg"].item() == pytest.approx(0.5 * (1 + 1 + 4) / 3)
    assert loss.metrics["loss/policy_avg"].item() == pytest.approx(-1)


def test_what_is_told_is_a_mean_over_what_counts() -> None:
    """Ratios 1.5, 1 and (alone in its row) 0.5 with advantages 1, 1, -1: two of three clipped; a masked 9 is not seen.

    Values moved by 0.5, 0 and 0.5 from 0 with goals 1: the clip of 0.2 decides in two of three.
    """
    batch = rollouts([[1.0, 1.0], [1.0, 0.0]])
    aims = targets(batch, [[1.0, 1.0], [-1.0, 5.0]], [[1.0, 1.0], [1.0, 9.0]])
    found = loss_at(made(SPEC), batch, aims, [[1.5, 1.0], [0.5, 9.0]], [[0.5, 0.0], [0.5, 7.0]]).metrics
    logs = [math.log(1.5), 0.0, math.log(0.5)]
    assert found["policy/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert found["val/ratio"].item() == pytest.approx(3 / 3)
    assert found["policy/approxkl_avg"].item() == pytest.approx(0.5 * sum(x * x for x in logs) / 3)
    assert found["val/clipfrac_avg"].item() == pytest.approx(2 / 3)
    assert found["loss/value_avg"].item() == pytest.approx(0.5 * (0.64 + 1 + 0.64) / 3)


def test_targets_are_made_by_minibatch_only_where_whitening_is() -> None:
    """whiten_scope says so."""
    assert made(PpoSpec(whiten_scope="minibatch")).per_minibatch
    assert not made(PpoSpec(whiten_scope="batch")).per_minibatch


def test_the_value_clip_is_around_the_old_value() -> None:
    """From 1 to 0.5 with a goal of 0: the clip says 0.8, whose square is the larger; upwards to 2 of 3 it says 1.2."""
    assert value_loss(0.5, 1.0, 0.0).metrics["loss/value_avg"].item() == pytest.approx(0.5 * 0.8**2)
    assert value_loss(2.0, 1.0, 3.0).metrics["loss/value_avg"].item() == pytest.approx(0.5 * 1.8**2)
