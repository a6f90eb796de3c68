"""The clip and what is told of it, by hand."""

from __future__ import annotations

import pytest
import torch

from services.learner.algorithms.clipping import clip_metrics, clip_share, clipped_surrogate

RATIO = torch.tensor([[0.5, 0.9, 1.5], [0.5, 1.1, 1.5]])
ADVANTAGES = torch.tensor([[-2.0, -2.0, -2.0], [0.5, 0.5, 0.5]])


def test_surrogate_on_either_side() -> None:
    """With clips 0.8 and 1.3: max(-A rho, -A clip(rho))."""
    found = clipped_surrogate(RATIO, ADVANTAGES, 0.2, 0.3)
    torch.testing.assert_close(found, torch.tensor([[1.6, 1.8, 3.0], [-0.25, -0.55, -0.65]]))


def test_share_counts_only_where_the_clip_decides() -> None:
    """Below the lower bound with a negative advantage, above the upper one with a positive advantage; else neither."""
    below, above = clip_share(RATIO, ADVANTAGES, 0.2, 0.3)
    assert below.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert above.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_metrics_leave_out_what_is_masked() -> None:
    """The first row has one token that counts, clipped from below; the second two, one of them clipped from above."""
    mask = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    ratio = torch.tensor([[0.5, 0.5, 0.5], [9.0, 1.0, 9.0]])
    found = clip_metrics(ratio, ADVANTAGES, 0.2, 0.2, mask / 3, mask)
    expected = {
        "clip_ratio/low_mean": 1 / 3,
        "clip_ratio/high_mean": 1 / 3,
        "clip_ratio/region_mean": 2 / 3,
        "clip_ratio/low_min": 0.0,
        "clip_ratio/high_max": 0.5,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_the_least_clipped_completion_is_told_by_its_share() -> None:
    """All of one token, and two of three: the least share is 2 / 3."""
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    ratio = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 1.0]])
    found = clip_metrics(ratio, -torch.ones(2, 3), 0.2, 0.2, mask / 4, mask)
    assert found["clip_ratio/low_min"].item() == pytest.approx(2 / 3)
    half = clip_metrics(ratio[1:], -torch.ones(1, 3), 0.2, 0.2, mask[:1] / 3, torch.tensor([[0.0, 1.0, 1.0]]))
    assert half["clip_ratio/low_min"].item() == 0.5
    upper = clip_metrics(2 - ratio, torch.ones(2, 3), 0.2, 0.2, mask / 4, mask)
    assert upper["clip_ratio/high_max"].item() == pytest.approx(1.0)
