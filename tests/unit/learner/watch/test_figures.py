"""What a batch's completions tell of its reward, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from services.learner.watch.figures import Watched, correlation, figures, mean_and_deviation, repetition
from services.learner.watch.worst import Worst, gaps


def watched(score: float, annotator: float | None = None, **fields: Any) -> Watched:
    given = {"prompt": "p", "text": "t", "parts": {"hh": score}, "length": 4, "repetition": 0.0, "kl": 0.0}
    return Watched(score=score, annotator=annotator, **{**given, **fields})


def test_mean_deviation_and_correlation_by_hand() -> None:
    """1, 2, 3: mean 2, variance 2/3. Against 1, 2, 6: covariance 5/3, variances 2/3 and 14/3."""
    assert mean_and_deviation([1, 2, 3]) == pytest.approx((2, (2 / 3) ** 0.5))
    assert correlation([1, 2, 3], [1, 2, 6]) == pytest.approx((5 / 3) / ((2 / 3) * (14 / 3)) ** 0.5)
    assert correlation([1, 2, 3], [6, 2, 1]) == pytest.approx(-(5 / 3) / ((2 / 3) * (14 / 3)) ** 0.5)
    assert correlation([1, 2, 3], [5, 5, 5]) == 0


def test_repetition_by_hand() -> None:
    """1 2 3 1 2 3: four 3-grams, the last repeats the first. All the same: 1 of 4 is new. Too short: none."""
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([7] * 6) == pytest.approx(3 / 4)
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([7, 7]) == 0


def test_figures_of_a_batch_by_hand() -> None:
    """Two parts, one of which a single completion lacks; the annotator prefers the short one that scores less."""
    batch = [
        watched(1.0, 3.0, parts={"hh": 1.0, "rules": 2.0}, length=2, repetition=0.5),
        watched(3.0, 1.0, parts={"hh": 3.0}, length=6, repetition=0.0),
    ]
    assert figures(batch) == pytest.approx(
        {
            "rewards/hh/mean": 2.0,
            "rewards/hh/std": 1.0,
            "rewards/hh/length_correlation": 1.0,
            "rewards/rules/mean": 2.0,
            "rewards/rules/std": 0.0,
            "rewards/rules/length_correlation": 0.0,
            "annotator/mean": 2.0,
            "annotator/std": 1.0,
            "annotator/score_correlation": -1.0,
            "annotator/length_correlation": -1.0,
            "completions/repetition": 0.25,
        }
    )


def test_without_one_opinion_there_is_no_annotator() -> None:
    """A mean over some would be another number every step."""
    assert not [name for name in figures([watched(1.0, 1.0), watched(2.0)]) if name.startswith("annotator")]


def test_gaps_by_hand() -> None:
    """Scores 1, 3 and opinions 5, 1 are both a deviation away from their means: gaps -2 and 2."""
    assert gaps([watched(1.0, 5.0), watched(3.0, 1.0)]) == pytest.approx([-2, 2])
    assert gaps([watched(1.0), watched(3.0)]) == pytest.approx([1, -1])
    assert gaps([watched(2.0, 5.0), watched(2.0, 5.0)]) == [0, 0]


def test_the_worst_of_the_last_steps() -> None:
    """The largest gaps first, at most so many, and what is older than the window goes."""
    worst = Worst(2, steps=2)
    first = worst.update(1, [watched(0.0, 1.0, text="a"), watched(1.0, 0.0, text="b"), watched(0.5, 0.5)])
    assert (first[0]["step"], first[0]["completion"]) == (1, "b")
    assert len(first) == 2
    worst.update(2, [watched(0.0, 0.0, text="c"), watched(1.0, 1.0, text="d")])
    third = worst.update(3, [watched(0.0, 1.0, text="e"), watched(1.0, 0.0, text="f")])
    assert third[0]["completion"] == "f"
    assert "b" not in [row["completion"] for row in third]
    assert third[0]["gap"] == pytest.approx(2)


def test_the_worst_go_on_after_a_resume() -> None:
    """Rows of the file stand for the steps before."""
    before = [{"step": 1, "gap": 9.0, "completion": "a"}, {"step": 2, "gap": 8.0, "completion": "b"}]
    worst = Worst(3, steps=2, before=before)
    rows = worst.update(3, [watched(0.0, 1.0, text="e"), watched(1.0, 0.0, text="f")])
    assert [row["completion"] for row in rows] == ["b", "f", "e"]
