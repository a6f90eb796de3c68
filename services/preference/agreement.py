"""Owns how far annotators agree on what several of them saw. Pure.

Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): 1 - observed over expected
disagreement; 1 is perfect, 0 is chance, below 0 systematic disagreement. Not every annotator needs to have seen every
unit. Computed by the package `krippendorff`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one annotator said of one unit. `value`, of a pair: 1 the first won, 0.5 tie, 0 the second won."""

    unit: str
    annotator: str
    value: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """`alpha`: nan where nothing can be said. `units`: judged by two annotators or more. `annotators`: of those."""

    alpha: float
    units: int
    annotators: int


def krippendorff_alpha(judgements: Iterable[Judgement], level: Level = "nominal") -> Agreement:
    """Over all units that at least two annotators judged; an annotator's last judgement of a unit counts.

    With "nominal" a tie differs from a win as a loss does; with "ordinal" it lies between them. Units must be named so
    that `value` means the same whichever side was shown first. `alpha` is nan for less than one shared unit; where all
    values are the same there is nothing to tell from chance, and it is nan too.
    """
    table: dict[str, dict[str, float]] = {}
    for judgement in judgements:
        table.setdefault(judgement.unit, {})[judgement.annotator] = judgement.value
    shared = {unit: said for unit, said in table.items() if len(said) >= 2}
    annotators = {
        name: n for n, name in enumerate(sorted({name for said in shared.values() for name in said}))
    }
    values = np.full((len(annotators), len(shared)), np.nan)
    for column, said in enumerate(shared.values()):
        for name, value in said.items():
            values[annotators[name], column] = value
    return Agreement(_alpha(values, level), len(shared), len(annotators))


def _alpha(values: np.typing.NDArray[np.float64], level: Level) -> float:
    """values: [annotators, units], nan where one said nothing."""
    if len(np.unique(values[~np.isnan(values)])) < 2:
        return math.nan
    import krippendorff

    return float(krippendorff.alpha(reliability_data=values, level_of_measurement=level))
