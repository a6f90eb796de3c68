"""Learning rate schedules, running normalisation of scores, intervals and splits, by hand."""

from __future__ import annotations

import pytest
import torch

from services.common.spec.run import OptimiserSpec
from services.learner.jobs.comparisons import Compared, Win, split_by_group
from services.learner.jobs.evaluation import wilson
from services.learner.scores import ScoreNormaliser
from services.learner.training import schedule


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        # 2 steps of warm-up, then 4 steps of which k are done: 1 - k/4; (1 + cos(pi k/4)) / 2.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(kind: str, factors: list[float]) -> None:
    """Warm-up in 2 steps, then constant, linear or cosine over the remaining 4 of 6."""
    spec = OptimiserSpec.model_validate({"schedule": kind, "warmup_steps": 2})
    assert [schedule(spec, step, 6) for step in range(6)] == pytest.approx(factors, abs=1e-6)


def test_schedules_never_go_below_zero() -> None:
    """Past the last step the factor is 0, not negative, and a run that is all warm-up divides by nothing."""
    assert schedule(OptimiserSpec(schedule="linear"), 99, 6) == 0.0
    assert schedule(OptimiserSpec(schedule="cosine"), 99, 6) == pytest.approx(0.0)
    assert schedule(OptimiserSpec(schedule="linear", warmup_steps=6), 6, 6) == 1.0


def test_normaliser_off_changes_nothing() -> None:
    """Where normalisation is off scores pass as they are and nothing is counted."""
    normaliser = ScoreNormaliser(enabled=False)
    assert normaliser.update_and_apply(torch.tensor([1.0, 5.0])).tolist() == [1.0, 5.0]
    assert normaliser.state() == {"count": 0.0, "mean": 0.0, "squares": 0.0}


def test_normaliser_runs_over_all_scores_so_far() -> None:
    """(1, 3): mean 2, deviation sqrt(2). Then (5): mean 3, squares 4 + 0 + 4, deviation 2, so (5 - 3) / 2 = 1."""
    normaliser = ScoreNormaliser(enabled=True)
    first = normaliser.update_and_apply(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(first, torch.tensor([-0.707107, 0.707107]), atol=1e-6, rtol=0)
    # Through a checkpoint's JSON numbers and on, exactly.
    taken_up = ScoreNormaliser.of(normaliser.state(), enabled=True)
    assert taken_up.update_and_apply(torch.tensor([5.0])).item() == pytest.approx(1.0)


def test_equal_scores_are_zero_not_infinite() -> None:
    """A deviation of 0 does not divide."""
    assert ScoreNormaliser(enabled=True).update_and_apply(torch.full((4,), 2.5)).tolist() == [0.0] * 4


def test_wilson_interval() -> None:
    """8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.7167, half 0.2267: 0.4902 to 0.9433. 0 of 5: from 0."""
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    low, high = wilson(0, 5)
    # 3.8415 / (5 + 3.8415)
    assert (low, high) == pytest.approx((0.0, 0.434482), abs=1e-5)
    assert wilson(5, 5)[1] == pytest.approx(1.0)


def test_split_keeps_groups_together() -> None:
    """No group on both sides, every prompt on one, a tenth of the groups held out, the same for the same seed."""
    pairs = [
        Compared(messages=(("user", str(at)),), answers=("a", "b"), wins=(Win(0, 1),), group=f"g{at % 50}")
        for at in range(200)
    ]
    fit, held = split_by_group(pairs, 0.1, seed=3)
    assert {p.group for p in fit}.isdisjoint(p.group for p in held)
    assert (len(fit), len({p.group for p in held})) == (180, 5)
    assert split_by_group(pairs, 0.1, seed=3) == (fit, held)
    assert split_by_group(pairs, 0.1, seed=4)[1] != held
    # At least one group is always held out.
    assert len(split_by_group(pairs, 0.001, seed=3)[1]) == 4
