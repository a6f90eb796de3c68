"""GRPO and its kin, by hand. Two groups of two: scores (1, 3) and (5, 5)."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.algorithms import GrpoSpec
from services.learner.algorithms.base import Current, Rollouts
from tests.numerics.batches import loss_at, made, rollouts, targets, whole

MASK = [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]


def batch() -> Rollouts:
    return rollouts(MASK, scores=[1.0, 3.0, 5.0, 5.0], groups=[0, 0, 1, 1])


@pytest.mark.parametrize(
    ("scale", "first"),
    [
        ("group", 1 / (math.sqrt(2) + 1e-4)),  # deviation of (1, 3)
        (
            "batch",
            1 / (math.sqrt(11 / 3) + 1e-4),
        ),  # of (1, 3, 5, 5): mean 3.5, squares 6.25 + 0.25 + 2.25 + 2.25
        ("none", 1.0),
    ],
)
def test_advantages(scale: str, first: float) -> None:
    """Score less the group's mean over the chosen deviation + 1e-4, on every token; a group without a spread gets 0."""
    found = made(GrpoSpec(num_generations=2, scale_rewards=scale)).targets(batch(), 0.0)
    expected = torch.tensor([[-first, -first], [first, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found.advantages, expected, atol=1e-6, rtol=0)
    assert found.metrics["frac_reward_zero_std"] == 0.5
    assert found.metrics["reward"] == 3.5
    assert found.kl.abs().sum().item() == 0
    scores = torch.tensor([[1.0, 1.0], [3.0, 0.0], [5.0, 5.0], [5.0, 5.0]])
    assert torch.equal(found.rewards, scores)
    assert torch.equal(found.returns, scores)


def test_what_is_told_is_a_mean_over_the_tokens_that_count() -> None:
    """Ratios 2, 4 and (alone in its row) 0.5, to the reference too; a masked 9 counts for nothing."""
    rows = rollouts([[1.0, 1.0], [1.0, 0.0]])
    aims = targets(rows, [[1.0, 1.0], [1.0, 0.0]])
    spec = GrpoSpec(use_bias_correction_kl=False)
    found = loss_at(made(spec), rows, aims, [[2.0, 4.0], [0.5, 9.0]]).metrics
    logs = [math.log(2), math.log(4), math.log(0.5)]
    assert found["val/ratio"].item() == pytest.approx(6.5 / 3)
    assert found["policy/approxkl_avg"].item() == pytest.approx(0.5 * sum(x * x for x in logs) / 3)
    assert found["kl"].item() == pytest.approx(sum(math.exp(-x) - 1 + x for x in logs) / 3)


def two_rows(spec: GrpoSpec, **given: object) -> float:
    """Rows of 2 and 1 tokens with ratios (1, 1.1), (0.9) and advantages 2 and -1: l = -2, -2.2, 0.9."""
    rows = rollouts([[1.0, 1.0], [1.0, 0.0]])
    aims = targets(rows, [[2.0, 2.0], [-1.0, 0.0]])
    return loss_at(made(spec, longest=4), rows, aims, [[1.0, 1.1], [0.9, 1.0]]).total.item()


@pytest.mark.parametrize(
    ("loss_type", "loss"),
    [
        ("dapo", (-2 - 2.2 + 0.9) / 3),  # tokens
        ("grpo", ((-2 - 2.2) / 2 + 0.9) / 2),  # mean of means
        ("dr_grpo", (-2 - 2.2 + 0.9) / (2 * 4)),  # 2 completions of at most 4 tokens
        ("luspo", (-2 - 2.2 + 0.9) / 2),  # completions
    ],
)
def test_loss_types_differ_in_what_they_divide_by(loss_type: str, loss: float) -> None:
    """The same three token losses, divided by tokens, by completions and lengths, by a constant, by completions."""
    assert two_rows(GrpoSpec(loss_type=loss_type)) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "low", "high"),
    [
        (1.25, 1.0, -1.25, 0, 0),  # below DAPO's 1.28
        (1.5, 1.0, -1.28, 0, 1),
        (0.5, -1.0, 0.8, 1, 0),
        (1.5, -1.0, 1.5, 0, 0),
        (4.0, -1.0, 2.0, 0, 0),  # delta bounds what the clip leaves alone
        (0.5, 1.0, -0.5, 0, 0),
    ],
)
def test_asymmetric_and_two_sided_clip(
    ratio: float, advantage: float, loss: float, low: int, high: int
) -> None:
    """epsilon 0.2, epsilon_high 0.28, delta 2: each edge, and which of them decided."""
    one = rollouts([[1.0]])
    spec = GrpoSpec(epsilon_high=0.28, delta=2.0)
    found = loss_at(made(spec), one, targets(one, [[advantage]]), [[ratio]])
    assert found.total.item() == pytest.approx(loss, abs=1e-6)
    assert found.metrics["clip_ratio/low_mean"].item() == low
    assert found.metrics["clip_ratio/high_mean"].item() == high
    assert found.metrics["clip_ratio/region_mean"].item() == low + high


def test_clip_extremes_are_of_completions() -> None:
    """Of 2 tokens 1 clipped above, of 1 token all below: high_max 1/2, low_min 0."""
    rows = rollouts([[1.0, 1.0], [1.0, 0.0]])
    aims = targets(rows, [[1.0, 1.0], [-1.0, 0.0]])
    found = loss_at(made(GrpoSpec()), rows, aims, [[1.0, 1.5], [0.5, 1.0]]).metrics
    assert found["clip_ratio/high_max"].item() == 0.5
    assert found["clip_ratio/low_min"].item() == 0.0
    assert found["clip_ratio/high_mean"].item() == pytest.approx(1 / 3)
    assert found["clip_ratio/low_mean"].item() == pytest.approx(1 / 3)


def test_gspo_takes_the_geometric_mean_of_a_completions_ratios() -> None:
    """Ratios 1.5 and 1.2 (and a masked 9) are sqrt(1.8) = 1.3416, clipped at 1.2 for an advantage of 1."""
    rows = rollouts([[1.0, 1.0, 0.0]])
    spec = GrpoSpec(importance_sampling_level="sequence", loss_type="grpo", epsilon_high=0.5)
    aims = targets(rows, [[1.0, 1.0, 1.0]])
    found = loss_at(made(spec), rows, aims, [[1.5, 1.2, 9.0]])
    assert found.total.item() == pytest.approx(-math.sqrt(1.8), abs=1e-6)
    clipped = loss_at(made(spec.model_copy(update={"epsilon_high": None})), rows, aims, [[1.5, 1.2, 9.0]])
    assert clipped.total.item() == pytest.approx(-1.2, abs=1e-6)
    assert clipped.metrics["clip_ratio/high_mean"].item() == pytest.approx(1.0)


def test_gspo_of_a_single_token_is_its_ratio() -> None:
    """One token's mean log-ratio is its own: -1.1 within the clip."""
    rows = rollouts([[1.0, 0.0]])
    spec = GrpoSpec(importance_sampling_level="sequence", loss_type="grpo")
    found = loss_at(made(spec), rows, targets(rows, [[1.0, 1.0]]), [[1.1, 9.0]])
    assert found.total.item() == pytest.approx(-1.1, abs=1e-6)


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    """-A min(rho, 5) log pi with log pi = ln 6 - 2: the gradient is -A * 5, though the clip decided."""
    rows = rollouts([[1.0, 1.0]], old=[[-2.0, -2.0]])
    spec = GrpoSpec(loss_type="cispo", epsilon_high=5.0)
    logprobs = (torch.tensor([[6.0, 3.0]]).log() - 2).requires_grad_()
    found = made(spec).loss(Current(logprobs, torch.zeros(1, 2)), whole(rows, targets(rows, [[1.0, -1.0]])))
    expected = (-5 * (math.log(6) - 2) + 3 * (math.log(3) - 2)) / 2
    assert found.total.item() == pytest.approx(expected, abs=1e-5)
    assert found.metrics["cispo_clip_ratio"].item() == 0.5
    found.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2.5, 1.5]]))


def test_cispo_wants_its_bound_named() -> None:
    """epsilon_high is a bound of the ratio there, which epsilon's 0.2 would not be."""
    with pytest.raises(ValueError, match="cispo needs epsilon_high"):
        GrpoSpec(loss_type="cispo")


def test_sapo() -> None:
    """-A 4/tau sigmoid(tau (rho - 1)): tau 1 and A = 1 give -2 at ratio 1, tau 1.05 and A = -1 give 2 / 1.05."""
    rows = rollouts([[1.0]])
    spec = GrpoSpec(loss_type="sapo")
    assert loss_at(made(spec), rows, targets(rows, [[1.0]]), [[1.0]]).total.item() == pytest.approx(-2.0)
    found = loss_at(made(spec), rows, targets(rows, [[-1.0]]), [[2.0]]).total.item()
    assert found == pytest.approx(4 / 1.05 / (1 + math.exp(-1.05)), abs=1e-6)
    steep = GrpoSpec(loss_type="sapo", sapo_temperature_pos=2.0)
    good = loss_at(made(steep), rows, targets(rows, [[1.0]]), [[2.0]]).total.item()
    assert good == pytest.approx(-4 / 2 / (1 + math.exp(-2)), abs=1e-6)


@pytest.mark.parametrize(("corrected", "kl"), [(True, 1.5), (False, 1.0)])
def test_kl_is_k3_in_the_loss_times_the_ratio(corrected: bool, kl: float) -> None:
    """x = log pi - log pi_ref = ln 1.5 + 0.5: beta (exp(-x) - 1 + x), times 1.5 where the bias is corrected.

    The importance factor of 3 concerns the policy loss alone.
    """
    rows = rollouts([[1.0]], old=[[-1.0]], reference=[[-1.5]], importance=[[3.0]])
    spec = GrpoSpec(beta=0.1, use_bias_correction_kl=corrected)
    assert spec.penalty.coefficient == 0.1
    x = math.log(1.5) + 0.5
    k3 = math.exp(-x) - 1 + x
    found = loss_at(made(spec), rows, targets(rows, [[-1.0]], beta=0.1), [[1.5]])
    assert found.total.item() == pytest.approx(3 * 1.5 + 0.1 * kl * k3, abs=1e-6)
    assert found.metrics["kl"].item() == pytest.approx(kl * k3, abs=1e-6)


def test_defaults_are_those_of_trl() -> None:
    """beta 0, dapo, 8 completions, group deviation, masked by completion with a cap of 3."""
    spec = GrpoSpec()
    assert (spec.beta, spec.loss_type, spec.num_generations, spec.scale_rewards) == (0.0, "dapo", 8, "group")
    assert (spec.epsilon, spec.epsilon_high, spec.delta, spec.epochs) == (0.2, None, None, 1)
    assert spec.importance_sampling.mode == "sequence_mask"
    assert spec.importance_sampling.bounds == (0.0, 3.0)
    assert spec.importance_sampling_level == "token"
    assert spec.use_bias_correction_kl


@pytest.mark.parametrize(
    ("said", "mode", "bounds"),
    [
        ({}, "sequence_mask", (0.0, 3.0)),
        ({"clip_max": 2.0}, "sequence_mask", (0.0, 2.0)),
        ({"clipMax": 2.0}, "sequence_mask", (0.0, 2.0)),
        ({"clip_min": 0.5}, "sequence_mask", (0.5, 3.0)),
        ({"mode": "none"}, "none", (0.0, 5.0)),
        ({"mode": "token_mask"}, "token_mask", (0.0, 2.0)),
    ],
)
def test_clips_alone_leave_the_correction_on(
    said: dict[str, object], mode: str, bounds: tuple[float, float]
) -> None:
    """What a table does not say is as without the table; a mode that is named has its own cap."""
    found = GrpoSpec.model_validate({"importance_sampling": said}).importance_sampling
    assert (found.mode, found.bounds) == (mode, bounds)
