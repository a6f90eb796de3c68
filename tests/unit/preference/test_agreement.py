"""Krippendorff's alpha against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from services.preference.agreement import Agreement, Judgement, krippendorff_alpha


def judged(**units: str) -> list[Judgement]:
    """One letter for each annotator: w won, l lost, t tie, - nothing said."""
    values = {"w": 1.0, "l": 0.0, "t": 0.5}
    return [
        Judgement(unit, f"annotator {n}", values[letter])
        for unit, said in units.items()
        for n, letter in enumerate(said)
        if letter != "-"
    ]


def test_four_units_of_two_annotators_by_hand() -> None:
    """Two of eight values disagree in one unit: observed 2/8; of 5 w and 3 l expected 2 * 15 / 56; alpha 1 - 14/30."""
    found = krippendorff_alpha(judged(a="ww", b="ll", c="wl", d="ww"))
    assert found.alpha == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
    assert found.alpha == pytest.approx(1 - 14 / 30)
    assert (found.units, found.annotators) == (4, 2)


def test_missing_answers_by_hand() -> None:
    """A unit of three counts its three pairs by halves; a unit that one alone judged says nothing."""
    found = krippendorff_alpha(judged(a="wwl", b="-ll", c="w--", d="ww-"))
    # Values that can be paired: 4 w and 3 l. Unit a: ordered pairs w-l 4 of them, each weighing 1 / (3 - 1).
    assert found.alpha == pytest.approx(1 - (4 / 2 / 7) / (2 * 4 * 3 / (7 * 6)))
    assert (found.units, found.annotators) == (3, 3)


def test_a_tie_lies_between_for_ordinal_values() -> None:
    """Win against tie is a smaller disagreement than win against loss; for nominal values all are the same."""
    near, far = judged(a="wt", b="ww", c="ll", d="tt"), judged(a="wl", b="ww", c="ll", d="tt")
    ordinal = [krippendorff_alpha(said, "ordinal").alpha for said in (near, far)]
    assert ordinal[0] > ordinal[1] + 0.2
    # Nominal, 3 w, 2 l and 3 t: 1 - (2/8) / (1 - (6 + 2 + 6) / 56); with 3 w, 3 l and 2 t the same.
    nominal = [krippendorff_alpha(said).alpha for said in (near, far)]
    assert nominal == pytest.approx([1 - (2 / 8) / (1 - 14 / 56)] * 2)


def test_perfect_and_systematic() -> None:
    """1 where all agree; below 0 where two always say the opposite."""
    assert krippendorff_alpha(judged(a="ww", b="ll")).alpha == pytest.approx(1)
    assert krippendorff_alpha(judged(a="wl", b="lw", c="wl")).alpha < -0.5


def test_where_nothing_can_be_said() -> None:
    """No shared unit, or one value only: not a number, and the counts say why. The last judgement of a unit counts."""
    assert math.isnan(krippendorff_alpha([]).alpha)
    alone = krippendorff_alpha(judged(a="w-", b="-l"))
    assert math.isnan(alone.alpha)
    assert (alone.units, alone.annotators) == (0, 0)
    assert math.isnan(krippendorff_alpha(judged(a="ww", b="ww")).alpha)
    again = [*judged(a="wl", b="ll"), Judgement("a", "annotator 1", 1.0)]
    assert krippendorff_alpha(again) == Agreement(pytest.approx(1.0), 2, 2)
