"""Statistics of groups, by hand."""

from __future__ import annotations

import pytest
import torch

from services.learner.algorithms.groups import group_deviation, group_mean, group_metrics, leave_one_out

# Groups 7 and 3 lie across each other.
SCORES = torch.tensor([1.0, 10.0, 3.0, 10.0, 8.0])
GROUPS = torch.tensor([7, 3, 7, 3, 7])


def test_means_and_deviations_are_of_the_rows_own_group() -> None:
    """(1, 3, 8): mean 4, variance (9 + 1 + 16) / 2 = 13. (10, 10): mean 10, variance 0."""
    assert group_mean(SCORES, GROUPS).tolist() == [4.0, 10.0, 4.0, 10.0, 4.0]
    root = 13**0.5
    assert group_deviation(SCORES, GROUPS).tolist() == pytest.approx([root, 0.0, root, 0.0, root])


def test_leave_one_out() -> None:
    """1 - (3 + 8) / 2 = -4.5; 3 - 4.5 = -1.5; 8 - 2 = 6; equal scores give 0, and so does a group of one."""
    assert leave_one_out(SCORES, GROUPS).tolist() == pytest.approx([-4.5, 0.0, -1.5, 0.0, 6.0])
    assert leave_one_out(torch.tensor([5.0]), torch.tensor([0])).tolist() == [0.0]
    assert leave_one_out(torch.tensor([1.0, 4.0]), torch.tensor([0, 0])).tolist() == [-3.0, 3.0]
    assert group_deviation(torch.tensor([5.0]), torch.tensor([0])).tolist() == [0.0]
    two = group_deviation(torch.tensor([1.0, 4.0]), torch.tensor([0, 0]))
    assert two.tolist() == pytest.approx([4.5**0.5] * 2)


def test_metrics() -> None:
    """Mean 32 / 5, Bessel-corrected deviation of all, and 2 of 5 completions in a group without a spread."""
    found = group_metrics(SCORES, GROUPS)
    assert found["reward"] == pytest.approx(6.4)
    assert found["reward_std"] == pytest.approx((69.2 / 4) ** 0.5)
    assert found["frac_reward_zero_std"] == pytest.approx(0.4)
    two = group_metrics(torch.tensor([1.0, 4.0]), torch.tensor([0, 0]))
    assert two["reward_std"] == pytest.approx(4.5**0.5)
    assert group_metrics(torch.tensor([2.0]), torch.tensor([0]))["reward_std"] == 0.0
