"""The figures about a reward model, by hand."""

from __future__ import annotations

import math

import pytest

from services.learner.jobs.comparisons import Compared, Win
from services.learner.jobs.evaluation import (
    Judged,
    by_agreement,
    by_margin,
    calibration_error,
    evaluate,
    judged,
)


def pair(logit: float, lengths: tuple[int, int] = (10, 10), **said: float) -> Judged:
    return Judged(logit=logit, lengths=lengths, **said)  # type: ignore[arg-type]


def test_pairs_of_a_prompt_know_scores_lengths_and_votes() -> None:
    """Difference of the two answers' scores, their lengths, and how many agreed."""
    prompt = Compared(messages=(), answers=("aaa", "b"), wins=(Win(0, 1, 2.0), Win(1, 0), Win(0, 1)))
    found = judged(prompt, [1.5, 1.0])
    assert [(one.logit, one.lengths, one.margin) for one in found] == [
        (0.5, (3, 1), 2.0),
        (-0.5, (1, 3), None),
        (0.5, (3, 1), None),
    ]
    assert {(one.agreement, one.votes) for one in found} == {(2 / 3, 3)}


def test_accuracy_stands_beside_that_of_length() -> None:
    """Three of four right; the longer one wins once and is tied once; two are length-matched, one of them right."""
    pairs = [pair(1.0, (30, 10)), pair(2.0, (10, 30)), pair(-1.0, (8, 10)), pair(0.5, (10, 10))]
    found = evaluate(pairs, [1, 2, 3], [0.0, 1.0, 2.0])
    assert found.accuracy == 0.75
    assert found.accuracy_longer_wins == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert (found.length_matched_pairs, found.accuracy_length_matched) == (2, 0.5)
    assert found.length_correlation == pytest.approx(1.0)
    assert found.accuracy_low < 0.75 < found.accuracy_high


def test_the_interval_counts_ties_half_as_the_accuracy_does() -> None:
    """Eight ties and two right are 6 of 10, Wilson's 0.313 to 0.832; all ties have the interval around a half."""
    found = evaluate([pair(0.0)] * 8 + [pair(1.0)] * 2, [1, 2], [0.0, 0.0])
    assert found.accuracy == pytest.approx(0.6)
    assert (found.accuracy_low, found.accuracy_high) == pytest.approx((0.31267, 0.83182), abs=1e-4)
    found = evaluate([pair(0.0)] * 100, [1, 2], [0.0, 0.0])
    assert found.accuracy_low + found.accuracy_high == pytest.approx(1.0)
    assert found.accuracy_low == pytest.approx(0.40383, abs=1e-4)


def test_without_length_matched_pairs_there_is_no_such_accuracy() -> None:
    """None, which is neither right nor wrong."""
    assert evaluate([pair(1.0, (30, 10))], [1], [0.0]).accuracy_length_matched is None


def test_calibration_is_the_gap_between_sureness_and_right() -> None:
    """Ten pairs with p = 0.75, eight of them right: 0.05. All certain and right: 0. All certain and wrong: 1."""
    logit = math.log(3)
    assert calibration_error([logit] * 8 + [-logit] * 2) == pytest.approx(0.05)
    assert calibration_error([50.0] * 3) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error([-50.0] * 3) == pytest.approx(1.0)


def test_accuracy_by_margin_goes_by_the_data_where_they_say_it() -> None:
    """Quarters by how sure the model is, the least sure first; by the data's margin where there is one."""
    sure = by_margin([pair(value) for value in (0.1, -0.2, 3.0, 4.0, 1.0, -1.1, 0.3, 0.4)])
    assert [(row["pairs"], row["accuracy"]) for row in sure] == [(2, 0.5), (2, 1.0), (2, 0.5), (2, 1.0)]
    said = by_margin([pair(-1.0, margin=3.0), pair(2.0, margin=1.0)])
    assert [(row["least"], row["accuracy"]) for row in said] == [(1.0, 1.0), (3.0, 0.0)]
    some = by_margin([pair(-1.0, margin=3.0), pair(9.0), pair(2.0, margin=1.0)])
    assert some == said


def test_accuracy_by_agreement() -> None:
    """Compared once, unanimous, disputed and undecided pairs apart; a kind that does not occur is absent."""
    found = by_agreement([pair(1.0), pair(-1.0, votes=2), pair(1.0, votes=3)])
    assert found["compared once"] == {"pairs": 1, "accuracy": 1.0}
    assert found["all agreed"] == {"pairs": 2, "accuracy": 0.5}
    assert "most agreed" not in found
    found = by_agreement([pair(1.0, votes=3, agreement=2 / 3), pair(1.0, votes=2, agreement=0.5)])
    assert {kind: row["pairs"] for kind, row in found.items()} == {"most agreed": 1, "split": 1}
