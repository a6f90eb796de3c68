"""Owns the arithmetic of benchmarks.scoring: rates, ratios, latencies, agreement. Pure; starts and measures nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

# What every way's figures end in; the headline is the worse of both.
PATTERNS = ("64x1", "8x32")
LIMIT_FLOOR = 1500.0
# bfloat16 keeps 8 bits and other batches sum in another order, so two right ways differ. All are held against float32,
# and may be off by half as much again as the limit itself. Differences are told in the spread of float32's scores, so
# that a server that answers with a constant, or in another order, is far outside.
MEAN_TOLERANCE = 1.5
LARGEST_TOLERANCE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of one way over all texts. pattern: empty for the limit, which has no clients."""

    way: str
    pattern: str
    round: int
    tokens_per_second: float


class Disagreement(Exception):
    """A way computes something else than the limit: its speed says nothing."""


def check_agreement(
    way: str, expected: Sequence[float], found: Sequence[float], limit: Sequence[float]
) -> float:
    """Mean difference, in deviations of `expected` (float32's). Disagreement where that is more than rounding."""
    if len(expected) != len(found):
        raise Disagreement(f"{way}: {len(found)} scores for {len(expected)} texts")
    if not pstdev(expected) > 0:
        raise Disagreement("float32 scores all texts alike: nothing can be compared")
    differences = _differences(expected, found)
    mean, largest = fmean(differences), max(differences)
    allowed = MEAN_TOLERANCE * fmean(_differences(expected, limit))
    if not (mean <= allowed and largest <= LARGEST_TOLERANCE):
        raise Disagreement(
            f"{way}: scores differ from float32's by {mean:.3f} deviations in the mean, {largest:.3f} at most; "
            f"allowed are {allowed:.3f} ({MEAN_TOLERANCE} times the limit's) and {LARGEST_TOLERANCE}"
        )
    return mean


def _differences(expected: Sequence[float], found: Sequence[float]) -> list[float]:
    spread = pstdev(expected)
    return [abs(one - two) / spread for one, two in zip(expected, found, strict=True)]


def ratio(passes: Iterable[Pass], way: str, to: str, pattern: str) -> float:
    """Speed of `way` over speed of `to`, each round for itself, median over the rounds. NaN without any."""
    passes = list(passes)
    above = _by_round(passes, way, pattern)
    below = _by_round(passes, to, pattern) or _by_round(passes, to, "")
    ratios = [above[number] / below[number] for number in sorted(above.keys() & below.keys())]
    return median(ratios) if ratios else math.nan


def rate(passes: Iterable[Pass], way: str, pattern: str) -> float:
    """Tokens a second of a way, median over the rounds. NaN without any."""
    rates = _by_round(list(passes), way, pattern)
    return median(rates.values()) if rates else math.nan


def _by_round(passes: Sequence[Pass], way: str, pattern: str) -> dict[int, float]:
    return {
        each.round: each.tokens_per_second for each in passes if each.way == way and each.pattern == pattern
    }


def worse(values: Iterable[float]) -> float:
    """The smallest; NaN where any is NaN, so that half a measurement passes for none."""
    values = list(values)
    return math.nan if not values or any(math.isnan(value) for value in values) else min(values)


def headline(passes: Sequence[Pass], name: str, way: str, to: str) -> dict[str, float]:
    """The figure `name`, the worse of both patterns, and beside it each pattern's."""
    ratios = {pattern: ratio(passes, way, to, pattern) for pattern in PATTERNS}
    figures = {name: worse(ratios.values())} | {
        f"{name}_{pattern}": value for pattern, value in ratios.items()
    }
    return known(figures)


def rates(passes: Sequence[Pass], way: str) -> dict[str, float]:
    """`<way>_tokens_per_second`, the worse of both patterns, and each pattern's."""
    seen = {pattern: rate(passes, way, pattern) for pattern in PATTERNS}
    figures = {f"{way}_tokens_per_second": worse(seen.values())} | {
        f"{way}_tokens_per_second_{pattern}": value for pattern, value in seen.items()
    }
    return known(figures)


def known(figures: Mapping[str, float]) -> dict[str, float]:
    """Those that were measured: NaN is no JSON."""
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above: of the sorted values the one at ceil(share * n)."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def poisson_arrivals(rate_per_second: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Seconds from the start at which calls come, their gaps exponential; the same for the same seed.

    At least one, so that a slow server is measured too.
    """
    random_gaps = random.Random(seed)
    arrivals: list[float] = []
    at = random_gaps.expovariate(rate_per_second)
    while at < seconds or not arrivals:
        arrivals.append(at)
        at += random_gaps.expovariate(rate_per_second)
    return tuple(arrivals)


def complaints(limit: float, missing: Iterable[str]) -> list[str]:
    """Why the comparison is not valid; empty where it is."""
    found = [f"{name} was not measured" for name in missing]
    if not limit >= LIMIT_FLOOR:
        found.append(
            f"BROKEN COMPARISON: the direct loop reaches {limit:,.0f} tokens/s, on this kind of machine it is at least "
            f"{LIMIT_FLOOR:,.0f}; something else is using the processor, or the loop is not set up right"
        )
    return found
