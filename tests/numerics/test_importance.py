"""Importance factors: where they are bounded, where they are 0, and what a completion's factor is."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from services.common.spec.algorithms import ImportanceSpec
from services.learner.algorithms.importance import importance, importance_metrics

# Ratios by token: (3, 1/2), (4, 2) and a masked token that would be e^9.
OLD = torch.tensor([[math.log(3), math.log(0.5), 0.0], [math.log(4), math.log(2), 9.0]])
BEHAVIOUR = torch.zeros(2, 3)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"mode": "none"}, [[1, 1], [1, 1]]),
        ({"mode": "token_truncate"}, [[2, 0.5], [2, 2]]),
        ({"mode": "token_truncate", "clip_min": 0.8, "clip_max": 3.5}, [[3, 0.8], [3.5, 2]]),
        ({"mode": "token_mask"}, [[0, 0.5], [0, 2]]),
        ({"mode": "token_mask", "clip_min": 0.8, "clip_max": 3.5}, [[3, 0], [0, 2]]),
        ({"mode": "sequence_truncate"}, [[1.5, 1.5], [5, 5]]),
        ({"mode": "sequence_mask", "clip_max": 3.0}, [[1.5, 1.5], [0, 0]]),
        ({"mode": "sequence_mask", "clip_min": 2.0, "clip_max": 9.0}, [[0, 0], [8, 8]]),
    ],
)
def test_factors(given: dict[str, object], rows: list[list[float]]) -> None:
    """Ratios 3, 1/2 and 4, 2; their products 1.5 and 8; caps of 2 by token and 5 by sequence where none is given."""
    found = importance(ImportanceSpec.model_validate(given), OLD, BEHAVIOUR, MASK)
    torch.testing.assert_close(found[:, :2], torch.tensor(rows, dtype=torch.float32))


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({"mode": "token_truncate", "clip_min": 2.5}, 2),
        ({"mode": "sequence_mask", "clip_min": 5.0}, 5),
        ({"mode": "token_mask", "clip_min": 3.0, "clip_max": 3.0}, 3),
    ],
)
def test_bounds_that_cross_are_refused(given: dict[str, object], most: int) -> None:
    """A cap that is left out is one too: each ratio would be clamped to it, or none kept."""
    with pytest.raises(ValidationError, match=f"expected clip_min below clip_max, which is {most}"):
        ImportanceSpec.model_validate(given)


def test_the_direction_is_learner_over_engine() -> None:
    """A token that the engine made likelier than the learner has a factor below 1."""
    spec = ImportanceSpec(mode="token_truncate")
    found = importance(spec, torch.tensor([[-2.0]]), torch.tensor([[-1.0]]), torch.ones(1, 1))
    assert found.item() == pytest.approx(math.exp(-1))


def test_metrics_are_over_the_tokens_that_count() -> None:
    """Least, mean and greatest of 2, 0.5, 2, 2."""
    factors = importance(ImportanceSpec(mode="token_truncate"), OLD, BEHAVIOUR, MASK)
    found = importance_metrics(factors, MASK)
    assert [found[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")] == (
        pytest.approx([0.5, 1.625, 2.0])
    )
    assert importance_metrics(factors, torch.zeros_like(MASK)) == {}
