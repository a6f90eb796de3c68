"""What a reading of a model becomes."""

from __future__ import annotations

import math

import pytest

from services.models.scorer import Reading
from services.reward.rewards.model import _outcome


@pytest.mark.parametrize("steps", [(0.5, math.nan), (math.nan, 0.5), (math.inf, 0.5)])
def test_a_step_that_is_no_number_is_no_score(steps: tuple[float, ...]) -> None:
    """The smallest of a step and NaN may be a number: the row is an error all the same."""
    outcome = _outcome(Reading(value=min(steps), steps=steps), cut=0)
    assert outcome.value is None and outcome.error is not None
    assert outcome.error.status == "DATA_LOSS"


def test_steps_go_with_the_value() -> None:
    """A sound reading is the row's value, its steps, and what was cut."""
    outcome = _outcome(Reading(value=0.25, steps=(0.25, 0.5)), cut=3)
    assert (outcome.value, outcome.steps, outcome.truncated_tokens) == (0.25, (0.25, 0.5), 3)
