"""Agreement, gold and habits of annotators against hand-counted values."""

from __future__ import annotations

import pytest

from services.preference.domain import Choice
from services.preference.insight import Answer, summarise


def said(task: str, name: str, choice: Choice, preferred: str, at: float = 0.0, **more: object) -> Answer:
    return Answer(task, name, choice, preferred, at, **more)  # type: ignore[arg-type]


def test_agreement_is_the_share_of_pairs_of_annotators_who_say_the_same() -> None:
    """Three about one pair (a, a, b): 1 of 3 pairs of them agree; two about another (tie, tie): 1 of 1; so 2 of 4."""
    insight = summarise(
        [
            said("t", "ann", Choice.FIRST, "a"),
            said("t", "bob", Choice.SECOND, "a"),  # the other way round, the same candidate
            said("t", "cid", Choice.SECOND, "b"),
            said("u", "ann", Choice.TIE, "(tie)"),
            said("u", "bob", Choice.TIE, "(tie)"),
            said("v", "ann", Choice.SKIP, "(skip)"),
            said("v", "bob", Choice.FIRST, "a"),
        ]
    )
    assert insight.agreement == 0.5
    assert insight.overlapping == 2
    by_name = {one.annotator: one for one in insight.annotators}
    assert by_name["ann"].agreement == pytest.approx(2 / 3)
    assert by_name["cid"].agreement == 0
    assert (by_name["ann"].comparisons, by_name["ann"].ties, by_name["ann"].skipped) == (3, 1, 1)
    assert (by_name["ann"].first_share, by_name["bob"].first_share) == (1.0, 0.5)


def test_gold_is_counted_apart() -> None:
    """Right and wrong gold answers are counted, and change neither agreement nor the count of comparisons."""
    insight = summarise(
        [
            said("g", "ann", Choice.FIRST, "a", right=True, seconds=4.0),
            said("g", "bob", Choice.SECOND, "b", right=False),
            said("t", "ann", Choice.FIRST, "a", seconds=10.0),
        ]
    )
    ann, bob = insight.annotators
    assert (ann.comparisons, ann.gold, ann.gold_right, ann.median_seconds) == (1, 1, 1, 7.0)
    assert (bob.comparisons, bob.gold, bob.gold_right, bob.median_seconds) == (0, 1, 0, None)
    assert insight.agreement is None


def test_labels_are_counted_by_the_hour() -> None:
    """3,599.9 s after the epoch is hour 0, 3,600 s is hour 1."""
    times = (0.0, 3599.9, 3600.0, 7300.0)
    insight = summarise([said(f"t{n}", "ann", Choice.TIE, "(tie)", at) for n, at in enumerate(times)])
    assert insight.by_hour == {0: 2, 1: 1, 2: 1}
    assert summarise([]).annotators == ()
