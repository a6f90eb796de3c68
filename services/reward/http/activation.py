"""The one activation that a caller can ask for."""

from __future__ import annotations

import math

from services.reward.rewards.base import ScoreOutcome


def shown(outcome: ScoreOutcome, value: float, *, activated: bool) -> float:
    """A value of this outcome as it is asked for; those of a process reward model are probabilities already."""
    return sigmoid(value) if activated and not outcome.steps else value


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), in [0, 1], for any finite value."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)
