"""95 % intervals of a metric, and of its difference between two models on the same prompts.

The prompt is what is drawn (or left out): completions of one prompt are not independent. Both models of a difference
get the same draws, so what is hard in a prompt cancels.

    bootstrap   2.5 % and 97.5 % points over 10,000 draws of prompts with replacement     Efron 1979
    jackknife   value ± 1.96 se, se^2 = (P - 1) / P sum_i (v_i - mean v)^2, v_i without prompt i     Tukey 1958
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.common.errors import InvalidInput
from services.common.metrics.base import Floats, Metric, PooledMetric, Sample

RESAMPLES = 10_000
SEED = 20_190_918
"""Fixed: the same completions always give the same interval."""

Groups = Sequence[Sequence[Sample]]
"""[prompts][completions]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; None with a single prompt, which says nothing about others."""

    value: float
    low: float | None
    high: float | None
    by: Literal["bootstrap", "jackknife"]

    def as_json(self) -> dict[str, float | str | None]:
        """For a file."""
        return {"value": self.value, "low": self.low, "high": self.high, "by": self.by}


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric over one model's completions, in the form that its interval needs.

    value: over all. parts: [prompts, k] sums of an additive metric, or [prompts] values without each prompt.
    """

    metric: Metric
    value: float
    parts: Floats


def measure(metric: Metric, groups: Groups) -> Measured:
    """Measure every completion once. Raises InvalidInput for no completions or a sample that cannot be measured."""
    if not groups or not all(groups):
        raise InvalidInput("there are no completions to measure")
    if isinstance(metric, PooledMetric):
        value, without = metric.pooled(groups)
        return Measured(metric, value, without)
    flat = metric.statistics([sample for group in groups for sample in group])
    ends = np.cumsum([len(group) for group in groups])[:-1]
    parts = np.stack([piece.sum(0) for piece in np.split(flat, ends)])
    return Measured(metric, float(metric.value(parts.sum(0))), parts)


def estimate(measured: Measured) -> Estimate:
    """The value with its interval."""
    return _interval(measured.value, [measured])


def difference(one: Measured, other: Measured) -> Estimate:
    """`other` minus `one`, over the same prompts in the same order. Raises InvalidInput where they are not as many."""
    if len(one.parts) != len(other.parts):
        raise InvalidInput(f"{len(one.parts)} and {len(other.parts)} prompts do not pair up")
    return _interval(other.value - one.value, [other, one])


def _interval(value: float, sides: Sequence[Measured]) -> Estimate:
    prompts = len(sides[0].parts)
    pooled = isinstance(sides[0].metric, PooledMetric)
    by: Literal["bootstrap", "jackknife"] = "jackknife" if pooled else "bootstrap"
    if prompts < 2:
        return Estimate(value=value, low=None, high=None, by=by)
    if pooled:
        values = _signed([side.parts for side in sides])
        spread = 1.96 * float(np.sqrt((prompts - 1) / prompts * ((values - values.mean()) ** 2).sum()))
        return Estimate(value=value, low=value - spread, high=value + spread, by=by)
    counts = np.random.default_rng(SEED).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    drawn = _signed([_values(side, counts.astype(np.float64)) for side in sides])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), by=by)


def _values(side: Measured, counts: Floats) -> Floats:
    if isinstance(side.metric, PooledMetric):
        raise TypeError("a pooled metric has no sums")
    return side.metric.value(counts @ side.parts)


def _signed(sides: Sequence[Floats]) -> Floats:
    return sides[0] if len(sides) == 1 else sides[0] - sides[1]
