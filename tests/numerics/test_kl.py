"""KL estimators and the controller of its coefficient, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from services.common.spec.run import KlSpec
from services.learner.algorithms.kl import KlController, k1, k2, k3

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
