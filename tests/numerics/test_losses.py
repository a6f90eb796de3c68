"""What holds for the loss of every algorithm: its gradient, and that micro-batches do not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from services.common.spec.algorithms import (
    A2cSpec,
    GrpoSpec,
    KlSpec,
    OnlineSpec,
    PpoSpec,
    ReinforcePlusPlusSpec,
    RftSpec,
    RlooSpec,
)
from services.learner.algorithms.base import Current, merged
from tests.numerics.batches import made, parts_of, random_batch, whole

IN_LOSS = KlSpec(estimator="k3", placement="loss")
SPECS: dict[str, OnlineSpec] = {
    "ppo": PpoSpec(),
    "ppo squared, kl in the loss": PpoSpec(value_loss="squared", kl=IN_LOSS, whitening="biased"),
    "a2c": A2cSpec(kl=IN_LOSS),
    "reinforce++": ReinforcePlusPlusSpec(baseline=True, kl=IN_LOSS),
    "rloo": RlooSpec(),
    "dapo": GrpoSpec(epsilon_high=0.28, beta=0.1),
    "grpo": GrpoSpec(loss_type="grpo", beta=0.1, delta=1.5),
    "dr_grpo": GrpoSpec(loss_type="dr_grpo", scale_rewards="none"),
    "gspo": GrpoSpec(loss_type="grpo", importance_sampling_level="sequence", beta=0.1),
    "luspo": GrpoSpec(loss_type="luspo", importance_sampling_level="sequence"),
    "cispo": GrpoSpec(loss_type="cispo", epsilon_high=1.1),
    "rft": RftSpec(keep=2),
    "sapo": GrpoSpec(loss_type="sapo", scale_rewards="batch"),
}


@pytest.mark.parametrize("name", SPECS)
def test_gradient_against_finite_differences(name: str) -> None:
    """In float64 the gradient at every token, of log-probs and values, is that of central differences.

    CISPO's weight has no gradient by definition: it is held at its value while the log-probs move.
    """
    algorithm = made(SPECS[name])
    batch, start = random_batch()
    aims = algorithm.targets(batch, 0.0 if name == "cispo" else 0.1)
    part = whole(batch, aims)

    def loss(logprobs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return algorithm.loss(Current(logprobs, values), part).total

    logprobs, values = start.logprobs.clone().requires_grad_(), start.values.clone().requires_grad_()
    found = torch.autograd.grad(loss(logprobs, values), (logprobs, values), allow_unused=True)
    if name == "cispo":
        weight = (start.logprobs - batch.old_logprobs).exp().clamp(max=1.1)
        expected = -weight * aims.advantages * batch.importance * batch.mask / batch.mask.sum()
        torch.testing.assert_close(found[0], expected)
        return
    step = 1e-6
    for which, gradient in enumerate(found):
        for row, column in ((row, column) for row in range(6) for column in range(5)):
            moved = []
            for sign in (1, -1):
                point = [start.logprobs.clone(), start.values.clone()]
                point[which][row, column] += sign * step
                moved.append(loss(*point))
            numeric = float(moved[0] - moved[1]) / (2 * step)
            exact = 0.0 if gradient is None else float(gradient[row, column])
            assert exact == pytest.approx(numeric, abs=1e-7), (which, row, column)
    assert algorithm.critic == (found[1] is not None and bool(found[1].abs().sum() > 0))


@pytest.mark.parametrize("name", SPECS)
def test_any_micro_batches_give_the_same_loss(name: str) -> None:
    """Loss, gradient and metrics of six completions together, one by one, and as 2 + 4 agree."""
    algorithm = made(SPECS[name])
    batch, start = random_batch()
    aims = algorithm.targets(batch, 0.1)

    def through(split: list[list[int]]) -> tuple[float, torch.Tensor, dict[str, float]]:
        logprobs = start.logprobs.clone().requires_grad_()
        totals: dict[str, float] = {}
        total = 0.0
        for current, part in parts_of(batch, aims, Current(logprobs, start.values), split):
            loss = algorithm.loss(current, part)
            loss.total.backward()
            total += float(loss.total.detach())
            merged(totals, loss.metrics)
        assert logprobs.grad is not None
        return total, logprobs.grad, totals

    one: Any = through([[0, 1, 2, 3, 4, 5]])
    for split in ([[0], [1], [2], [3], [4], [5]], [[4, 1], [0, 2, 3, 5]]):
        other = through(split)
        assert other[0] == pytest.approx(one[0], abs=1e-12)
        torch.testing.assert_close(other[1], one[1], atol=1e-12, rtol=0)
        assert other[2] == pytest.approx(one[2], abs=1e-12)
    outside = batch.mask == 0
    assert one[1][outside].abs().max().item() == 0


@pytest.mark.parametrize("name", SPECS)
def test_what_is_masked_teaches_nothing(name: str) -> None:
    """Other log-probs, references and values in masked places change neither targets nor loss."""
    algorithm = made(SPECS[name])
    batch, start = random_batch()
    noise = 7 * (1 - batch.mask)
    moved = {
        field: getattr(batch, field) + noise for field in ("old_logprobs", "reference_logprobs", "old_values")
    }
    lies = replace(batch, **moved)
    losses = []
    for one, now in ((batch, start), (lies, Current(start.logprobs + 2 * noise, start.values - noise))):
        part = whole(one, algorithm.targets(one, 0.1))
        assert not part.targets.advantages[one.mask == 0].any()
        losses.append(float(algorithm.loss(now, part).total))
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
