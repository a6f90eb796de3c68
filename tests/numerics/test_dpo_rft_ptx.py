"""DPO, best of n and PPO-ptx, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.algorithms import RftSpec
from services.common.spec.library import DpoSpec
from services.learner.algorithms.base import Current, Loss
from services.learner.algorithms.dpo import Pair, dpo_loss, sequence_logprobs
from services.learner.algorithms.ptx import mixed
from services.learner.algorithms.rft import best_of_n_kl, kept
from tests.numerics.batches import made, rollouts, whole


def pairs() -> tuple[Pair, Pair]:
    """Log-ratios 2 and -1 of the chosen, -1 and 0 of the rejected: margins 3 and -1."""
    chosen = Pair(torch.tensor([-3.0, -5.0]), torch.tensor([-5.0, -4.0]))
    rejected = Pair(torch.tensor([-7.0, -2.0]), torch.tensor([-6.0, -2.0]))
    return chosen, rejected


def test_dpo_loss_and_metrics() -> None:
    """beta 0.1: -log sigmoid(0.3) and -log sigmoid(-0.1), over 2."""
    found = dpo_loss(*pairs(), DpoSpec(), comparisons=2)
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.1))) / 2
    assert found.total.item() == pytest.approx(expected, abs=1e-6)
    for name, value in {
        "rewards/chosen": 0.05,
        "rewards/rejected": -0.05,
        "rewards/margins": 0.1,
        "rewards/accuracies": 0.5,
        "logps/chosen": -4.0,
        "logps/rejected": -4.5,
    }.items():
        assert found.metrics[name].item() == pytest.approx(value, abs=1e-6), name


def test_dpo_accuracy_is_the_share_of_margins_above_zero() -> None:
    """Margins 3, 0.5 and -1: two of three."""
    chosen, zero = torch.tensor([3.0, 0.5, -1.0]), torch.zeros(3)
    found = dpo_loss(Pair(chosen, zero), Pair(zero, zero), DpoSpec(), comparisons=3)
    assert found.metrics["rewards/accuracies"].item() == pytest.approx(2 / 3)


def test_dpo_with_labels_that_may_be_wrong() -> None:
    """A tenth of the labels flipped: 0.9 of each loss and 0.1 of the loss with the sides exchanged."""
    found = dpo_loss(*pairs(), DpoSpec(label_smoothing=0.1), comparisons=2)
    one = 0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3))
    two = 0.9 * math.log1p(math.exp(0.1)) + 0.1 * math.log1p(math.exp(-0.1))
    assert found.total.item() == pytest.approx((one + two) / 2, abs=1e-6)


def test_dpo_gradient_against_finite_differences_and_parts() -> None:
    """In float64, of both sides; the sum over single comparisons is the batch's loss."""
    tensors = [torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64) * (at + 1) for at in range(4)]

    def loss(values: list[torch.Tensor], rows: slice = slice(None)) -> torch.Tensor:
        a, b, c, d = (value[rows] for value in values)
        return dpo_loss(Pair(a, b), Pair(c, d), DpoSpec(label_smoothing=0.2), comparisons=3).total

    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss(leaves).backward()
    for which in (0, 2):
        for at in range(3):
            moved = []
            for sign in (1, -1):
                changed = [tensor.clone() for tensor in tensors]
                changed[which][at] += sign * 1e-6
                moved.append(float(loss(changed)))
            slope = leaves[which].grad
            assert slope is not None
            assert float(slope[at]) == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-8)
    parts = sum(float(loss(tensors, slice(at, at + 1))) for at in range(3))
    assert parts == pytest.approx(float(loss(tensors)), abs=1e-12)


def test_sequence_logprobs_leave_out_what_is_masked() -> None:
    """-1 - 2 and -3."""
    found = sequence_logprobs(
        torch.tensor([[-1.0, -2.0], [-3.0, -9.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    )
    assert found.tolist() == [-3.0, -3.0]


SCORES = torch.tensor([1.0, 5.0, 4.0, 5.0, 3.0, -1.0])
GROUPS = torch.tensor([0, 1, 0, 1, 0, 2])


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({}, [1, 2, 5]),  # of the equal 5s the first
        ({"keep": 2}, [1, 2, 3, 4, 5]),
        ({"at_least": 4.5}, [1]),
        ({"at_least": 4.0}, [1, 2]),  # the bound itself is kept
    ],
)
def test_best_of_n(given: dict[str, float], rows: list[int]) -> None:
    """Groups (1, 4, 3), (5, 5), (-1), lying across each other."""
    spec = RftSpec.model_validate(given)
    chosen = kept(SCORES, GROUPS, keep=spec.keep, at_least=spec.at_least)
    assert chosen.nonzero()[:, 0].tolist() == rows


def test_rft_clones_the_kept_tokens() -> None:
    """Of two groups the best rows have 2 and 1 tokens: -(-1 - 2 - 4) / 3; each of their tokens pulls by 1 / 3."""
    batch = rollouts(
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]],
        scores=[2.0, 1.0, 5.0, 5.0],
        groups=[0, 0, 1, 1],
    )
    algorithm = made(RftSpec())
    aims = algorithm.targets(batch, 0.0)
    # 8 tokens in all over 3 kept ones.
    assert aims.advantages[:, 0].tolist() == pytest.approx([8 / 3, 0.0, 8 / 3, 0.0])
    assert aims.metrics["rft/kept"] == 0.5
    scores = torch.tensor([[2.0, 2.0, 0.0], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0], [5.0, 5.0, 0.0]])
    assert torch.equal(aims.rewards, scores)
    assert torch.equal(aims.returns, scores)
    logprobs = torch.tensor(
        [[-1.0, -2.0, -8.0], [-5.0] * 3, [-4.0, -9.0, -9.0], [-7.0] * 3], requires_grad=True
    )
    found = algorithm.loss(Current(logprobs, torch.zeros(4, 3)), whole(batch, aims))
    assert found.total.item() == pytest.approx(7 / 3)
    found.total.backward()
    assert logprobs.grad is not None
    third = -1 / 3
    expected = torch.tensor([[third, third, 0.0], [0.0] * 3, [third, 0.0, 0.0], [0.0] * 3])
    torch.testing.assert_close(logprobs.grad, expected)


def test_rft_weighs_what_another_engine_has_drawn() -> None:
    """One kept token of two: -2 log pi, times its factor of 0.25, over two tokens."""
    batch = rollouts([[1.0], [1.0]], scores=[1.0, 2.0], groups=[0, 0], importance=[[9.0], [0.25]])
    algorithm = made(RftSpec())
    aims = algorithm.targets(batch, 0.0)
    assert aims.advantages.tolist() == [[0.0], [2.0]]
    found = algorithm.loss(Current(torch.tensor([[-1.0], [-3.0]]), torch.zeros(2, 1)), whole(batch, aims))
    assert found.total.item() == pytest.approx(2 * 3 * 0.25 / 2)


def test_rft_keeps_nothing_below_the_bound() -> None:
    """Then there is nothing to clone: the loss and its gradient are 0."""
    batch = rollouts([[1.0], [1.0]], scores=[0.1, 0.2], groups=[0, 0])
    aims = made(RftSpec(at_least=0.5)).targets(batch, 0.0)
    assert aims.advantages.tolist() == [[0.0], [0.0]]


def test_best_of_n_kl() -> None:
    """log n - (n - 1) / n: 0 for one, 0.1931 for two, 0.6363 for four."""
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)
    assert best_of_n_kl(4) == pytest.approx(0.636294, abs=1e-6)


def test_ptx_of_a_single_token_and_of_none() -> None:
    """-log pi of the one token, whole; without text only the RL loss."""
    rl = Loss(torch.tensor(0.5), {})
    one = mixed(rl, torch.tensor([[-3.0]]), torch.ones(1, 1), gamma=2.0, tokens=1)
    assert one.total.item() == pytest.approx(0.5 + 2 * 3)
    assert mixed(rl, torch.tensor([[-3.0]]), torch.zeros(1, 1), gamma=2.0, tokens=0).total.item() == 0.5


def test_ptx_mixing() -> None:
    """0.5 + 27.8 * (1 + 2 + 3) / 3, whatever the RL loss' own tokens; each text token has a gradient of -27.8 / 3."""
    rl = Loss(torch.tensor(0.5), {"loss/policy_avg": torch.tensor(0.5)})
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]], requires_grad=True)
    found = mixed(rl, logprobs, torch.tensor([[1.0, 1.0], [1.0, 0.0]]), gamma=27.8, tokens=3)
    assert found.total.item() == pytest.approx(0.5 + 27.8 * 2, rel=1e-6)
    assert found.metrics["loss/ptx_avg"].item() == pytest.approx(2.0)
    assert found.metrics["loss/policy_avg"].item() == 0.5
    found.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-27.8 / 3, -27.8 / 3], [-27.8 / 3, 0.0]]))
