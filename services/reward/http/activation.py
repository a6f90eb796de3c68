"""The one activation that a caller can ask for."""

from __future__ import annotations

import math


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), in [0, 1], for any finite value."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)
