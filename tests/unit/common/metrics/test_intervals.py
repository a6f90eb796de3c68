"""Intervals of values and of paired differences."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidInput
from services.common.metrics import Sample, make_metric
from services.common.metrics.intervals import difference, estimate, measure


def groups(*texts: str) -> list[list[Sample]]:
    """One completion for each prompt."""
    return [[Sample(prompt="", completion=text)] for text in texts]


def test_bootstrap_over_two_prompts() -> None:
    """Means of two draws from lengths 1 and 3 are 1, 2 and 3 with weights 1/4, 1/2, 1/4: the interval is all of it."""
    found = estimate(measure(make_metric("length"), groups("a", "a b c")))
    assert (found.value, found.low, found.high, found.by) == (2, 1, 3, "bootstrap")


def test_prompts_are_drawn_whole() -> None:
    """Two prompts whose completions have the same mean length leave no doubt, however those differ within a prompt."""
    wide = [[Sample(prompt="", completion=text) for text in ("a", "a b c")] for _ in range(2)]
    found = estimate(measure(make_metric("length"), wide))
    assert (found.low, found.high) == (2, 2)


def test_jackknife_by_hand() -> None:
    """Values 1 and 2/3 without each prompt: se^2 = 1/2 * 2 (1/6)^2, so 0.6 plus and minus 1.96 / 6."""
    found = estimate(measure(make_metric("distinct-2"), groups("a b a b", "a b c")))
    assert (found.low, found.high) == pytest.approx((0.6 - 1.96 / 6, 0.6 + 1.96 / 6))
    assert found.by == "jackknife"


@pytest.mark.parametrize("metric", ["length", "distinct-1", "repetition-1"])
def test_a_model_does_not_differ_from_itself(metric: str) -> None:
    """Its paired difference is 0 with an interval of no width, though each value is uncertain."""
    measured = measure(make_metric(metric), groups("a", "b b c", "a a d d d"))
    found = difference(measured, measured)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    alone = estimate(measured)
    assert alone.low is not None and alone.high is not None and alone.low < alone.high


def test_a_constant_difference_is_certain_where_prompts_vary() -> None:
    """One word more for every prompt is 1 [1, 1]: the same prompts are drawn on both sides; other minus one."""
    short = measure(make_metric("length"), groups("a", "a b c d", "a b"))
    long = measure(make_metric("length"), groups("a x", "a b c d x", "a b x"))
    found = difference(short, long)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_what_cannot_be_compared() -> None:
    """A single prompt has no interval; other prompts do not pair up; no completion is an error."""
    one = measure(make_metric("length"), groups("a"))
    assert estimate(one).low is None
    with pytest.raises(InvalidInput, match="1 and 2 prompts"):
        difference(one, measure(make_metric("length"), groups("a", "b")))
    with pytest.raises(InvalidInput, match="no completions"):
        measure(make_metric("length"), [])
