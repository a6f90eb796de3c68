"""Figures that show what a reward is fooled by: its parts, and how they go with length and a second opinion. Pure.

rewards/<part>/mean, /std, /length_correlation    each scoring stage, and each component of a composite
annotator/mean, /std, /score_correlation, /length_correlation
completions/repetition                            share of token 3-grams that stood there before
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GRAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One completion. parts: values by name, unweighted. annotator: None where nobody gave one.

    kl: to the reference, nats, summed; None where the completion came without the reference's log-probs.
    """

    prompt: str
    text: str
    score: float
    parts: Mapping[str, float]
    annotator: float | None
    length: int
    repetition: float
    kl: float | None


def figures(batch: Sequence[Watched]) -> dict[str, float]:
    """Metrics of a batch that is not empty."""
    lengths = [float(one.length) for one in batch]
    found: dict[str, float] = {}
    for name in sorted({name for one in batch for name in one.parts}):
        having = [one for one in batch if name in one.parts]
        values = [one.parts[name] for one in having]
        found[f"rewards/{name}/mean"], found[f"rewards/{name}/std"] = mean_and_deviation(values)
        found[f"rewards/{name}/length_correlation"] = correlation(
            values, [float(one.length) for one in having]
        )
    opinions = [one.annotator for one in batch if one.annotator is not None]
    if len(opinions) == len(batch):
        found["annotator/mean"], found["annotator/std"] = mean_and_deviation(opinions)
        found["annotator/score_correlation"] = correlation(opinions, [one.score for one in batch])
        found["annotator/length_correlation"] = correlation(opinions, lengths)
    found["completions/repetition"] = sum(one.repetition for one in batch) / len(batch)
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of these values, not of what they are drawn from)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    (one, spread_one), (two, spread_two) = mean_and_deviation(first), mean_and_deviation(second)
    if spread_one < 1e-12 or spread_two < 1e-12:
        return 0.0
    together = sum((a - one) * (b - two) for a, b in zip(first, second, strict=True)) / len(first)
    return together / (spread_one * spread_two)


def repetition(ids: Sequence[int]) -> float:
    """Share of 3-grams of a completion that are repeats of an earlier one; 0 for fewer than 3 tokens."""
    grams = [tuple(ids[at : at + GRAM]) for at in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
