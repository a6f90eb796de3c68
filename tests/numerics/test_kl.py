"""KL estimators and the controller of its coefficient, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.algorithms import KlSpec
from services.learner.algorithms.kl import KlController, k1, k2, k3, loss_kl, measured_kl, reward_kl

ADAPTIVE = KlSpec(kind="adaptive", coefficient=0.15, target=6.0, horizon=10_000)


def test_estimators_at_a_log_ratio_of_ln_2() -> None:
    """x = ln 2: k1 = 0.6931, k2 = x^2 / 2 = 0.2402, k3 = 1/2 - 1 + ln 2 = 0.1931."""
    logprobs, reference = torch.tensor([-1.0]), torch.tensor([-1.0 - math.log(2)])
    assert k1(logprobs, reference).item() == pytest.approx(0.693147, abs=1e-6)
    assert k2(logprobs, reference).item() == pytest.approx(0.240227, abs=1e-6)
    assert k3(logprobs, reference).item() == pytest.approx(0.193147, abs=1e-6)


def test_estimators_at_a_negative_log_ratio() -> None:
    """x = -ln 2: k1 = -0.6931, k2 = 0.2402 again, k3 = 2 - 1 - ln 2 = 0.3069; k3 is never negative."""
    logprobs, reference = torch.tensor([-2.0]), torch.tensor([-2.0 + math.log(2)])
    assert k1(logprobs, reference).item() == pytest.approx(-0.693147, abs=1e-6)
    assert k2(logprobs, reference).item() == pytest.approx(0.240227, abs=1e-6)
    assert k3(logprobs, reference).item() == pytest.approx(0.306853, abs=1e-6)
    assert bool((k3(torch.linspace(-9, 0, 300), torch.full((300,), -3.0)) >= 0).all())


def test_k1_and_k3_estimate_the_same_kl() -> None:
    """Over the exact distribution both have the mean sum p log(p/q): here 0.9 ln 1.8 + 0.1 ln 0.2 = 0.3681."""
    p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    for estimator in (k1, k3):
        assert (p.exp() * estimator(p, q)).sum().item() == pytest.approx(0.368064, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "error"),
    [
        (6.6, 0.1),  # 6.6 / 6 - 1
        (60.0, 0.2),  # clipped from above
        (0.0, -0.2),  # clipped from below
        (6.0, 0.0),
    ],
)
def test_adaptive_controller(kl: float, error: float) -> None:
    """beta * (1 + e * n / horizon): with e = 0.1 and n = 64, 0.15 * (1 + 0.1 * 64 / 10,000) = 0.150096."""
    updated = KlController.start(ADAPTIVE).updated(kl, 64)
    assert updated.coefficient == pytest.approx(0.15 * (1 + error * 0.0064), rel=1e-9)


def test_adaptive_controller_goes_on_from_where_it_is() -> None:
    """Two updates at the upper clip multiply: 0.15 * 1.2^2 with as many episodes as the horizon."""
    controller = KlController.start(ADAPTIVE).updated(100, 10_000).updated(100, 10_000)
    assert controller.coefficient == pytest.approx(0.216)


def test_fixed_controller_stays() -> None:
    """A fixed coefficient is the same whatever the KL."""
    assert KlController.start(KlSpec(coefficient=0.3)).updated(1000, 1000).coefficient == 0.3


def test_adaptive_controller_stops_at_its_lowest() -> None:
    """Below the target the coefficient falls by at most 20 % of n / horizon a step, and never below `lowest`."""
    spec = KlSpec(kind="adaptive", coefficient=0.1, target=6.0, horizon=64, lowest=0.085)
    once = KlController.start(spec).updated(0.0, 32)
    assert once.coefficient == pytest.approx(0.09)
    assert once.updated(0.0, 32).coefficient == 0.085
    assert once.updated(0.0, 32).updated(12.0, 32).coefficient == pytest.approx(0.0935)


def test_a_gain_stands_for_episodes_over_horizon() -> None:
    """RL4LMs: beta * (1 + 0.1 * 0.1), however many episodes there were."""
    spec = ADAPTIVE.model_copy(update={"gain": 0.1})
    assert KlController.start(spec).updated(6.6, 64).coefficient == pytest.approx(0.15 * 1.01)


FIVE = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
FIVE_REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)


def test_estimators_against_an_exact_kl_on_five_tokens() -> None:
    """E[k1] = E[k3] = sum p log(p / q) by enumeration; E[k2] = E[log^2] / 2, which is another number."""
    p, q = FIVE.log(), FIVE_REFERENCE.log()
    exact = sum(a * math.log(a / b) for a, b in zip(FIVE.tolist(), FIVE_REFERENCE.tolist(), strict=True))
    assert (FIVE * k1(p, q)).sum().item() == pytest.approx(exact, abs=1e-12)
    assert (FIVE * k3(p, q)).sum().item() == pytest.approx(exact, abs=1e-12)
    squares = sum(
        a * math.log(a / b) ** 2 for a, b in zip(FIVE.tolist(), FIVE_REFERENCE.tolist(), strict=True)
    )
    assert (FIVE * k2(p, q)).sum().item() == pytest.approx(squares / 2, abs=1e-12)


def test_k2_in_the_loss_has_the_gradient_of_the_exact_kl() -> None:
    """E[d k2] = sum p x d log p = d KL on five tokens, where E[d k1] is 0: k1 belongs into the reward."""
    q = FIVE_REFERENCE.log()
    logits = FIVE.log().clone().requires_grad_()
    exact = torch.autograd.grad((logits.softmax(-1) * (logits.log_softmax(-1) - q)).sum(), logits)[0]
    for estimator, expected in ((k2, exact), (k1, torch.zeros_like(exact))):
        loss = (FIVE * estimator(logits.log_softmax(-1), q)).sum()
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, atol=1e-12, rtol=0)


def test_the_penalty_stands_in_the_reward_or_in_the_loss() -> None:
    """In exactly one of them, by its own estimator, and never on masked tokens of the reward."""
    logprobs, reference, mask = (
        torch.tensor([[-1.0, -1.0]]),
        torch.tensor([[-3.0, -3.0]]),
        torch.tensor([[1.0, 0.0]]),
    )
    inside = KlSpec(estimator="k2")
    assert reward_kl(inside, logprobs, reference, mask).tolist() == [[2.0, 0.0]]
    assert loss_kl(inside, logprobs, reference) is None
    outside = KlSpec(estimator="k1", placement="loss")
    assert reward_kl(outside, logprobs, reference, mask).tolist() == [[0.0, 0.0]]
    found = loss_kl(outside, logprobs, reference)
    assert found is not None
    assert found.tolist() == [[2.0, 2.0]]


def test_what_the_controller_is_fed() -> None:
    """Log-ratios (1, 2), (3): sums 3 and 3, mean 3; per token 6 / 3 = 2; k3 sums exp(-x) - 1 + x."""
    logprobs, mask = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    reference = torch.zeros(2, 2)
    assert measured_kl(KlSpec(), logprobs, reference, mask) == pytest.approx(3.0)
    assert measured_kl(KlSpec(per_token=True), logprobs, reference, mask) == pytest.approx(2.0)
    # One row, one token: neither rows nor columns are mixed up, and one token is divided by one.
    assert measured_kl(KlSpec(), logprobs[:1], reference[:1], mask[:1]) == pytest.approx(3.0)
    assert measured_kl(KlSpec(per_token=True), logprobs[1:], reference[1:], mask[1:]) == pytest.approx(3.0)
    expected = sum(math.exp(-x) - 1 + x for x in (1, 2, 3)) / 2
    assert measured_kl(KlSpec(measured="k3"), logprobs, reference, mask) == pytest.approx(expected)
