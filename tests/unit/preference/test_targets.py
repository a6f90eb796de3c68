"""Ratings as training targets, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import InvalidInput
from services.preference.domain import rated_name
from services.preference.ratings import Game, Rating, RatingMethod, rate
from services.preference.targets import items_of, scalar_targets, target_rows
from tests.unit.preference.builders import item


def ratings(**points: float) -> list[Rating]:
    return [Rating(name.replace("_", "/"), value, value, value, 1) for name, value in points.items()]


def test_mean_0_and_deviation_1() -> None:
    """1100, 1000, 900 have mean 1000 and deviation sqrt(20000 / 3)."""
    step = 100 / (20_000 / 3) ** 0.5
    assert scalar_targets(ratings(a=1100, b=1000, c=900)) == pytest.approx({"a": step, "b": 0.0, "c": -step})


def test_candidates_are_centred_within_their_item() -> None:
    """Each prompt's mean is 0, and one scale holds for all: what was close stays close."""
    found = scalar_targets(ratings(x_1=1200, x_2=1000, y_1=510, y_2=490), group=lambda subject: subject[0])
    scale = ((100**2 + 100**2 + 10**2 + 10**2) / 4) ** 0.5
    expected = {"x/1": 100 / scale, "x/2": -100 / scale, "y/1": 10 / scale, "y/2": -10 / scale}
    assert found == pytest.approx(expected)


def test_nothing_to_tell_apart() -> None:
    """Equal ratings, whatever their rounding, are 0; none are none."""
    assert scalar_targets(ratings(a=1000, b=1000)) == {"a": 0.0, "b": 0.0}
    assert scalar_targets([]) == {}


def test_policies_over_versions_are_rated_against_an_anchor() -> None:
    """Odds of 4 to 1 and of 2 to 1 in a row: version 2 leads version 0 by 400 log10 8, which has 1000 by definition."""
    games = [Game("policy@1", "policy@0", 1.0)] * 4 + [Game("policy@1", "policy@0", 0.0)]
    games += [Game("policy@2", "policy@1", 1.0)] * 2 + [Game("policy@2", "policy@1", 0.0)]
    method = RatingMethod(kind="bradley-terry", prior_deviation=float("inf"), samples=50, anchor="policy@0")
    best, middle, first = rate(games * 10, method)
    assert (first.subject, first.rating, first.low, first.high) == ("policy@0", 1000.0, 1000.0, 1000.0)
    assert middle.rating == pytest.approx(1000 + 240.824, abs=1e-2)
    assert best.rating == pytest.approx(1000 + 361.236, abs=1e-2)
    assert best.high - best.low > middle.high - middle.low > 50


@pytest.mark.parametrize("kind", ["elo", "bradley-terry", "crowd"])
def test_an_anchor_that_was_not_compared_is_refused(kind: str) -> None:
    """In one line that names it."""
    with pytest.raises(
        InvalidInput, match="anchor: expected a subject that was compared with another, got z"
    ):
        rate([Game("a", "b", 1.0)], RatingMethod(kind=kind, anchor="z"))  # type: ignore[arg-type]


def test_a_candidate_s_id_may_hold_a_slash() -> None:
    """Ids of items and of candidates are taken as they are: answers of one item are centred together."""
    one = item(1, "good", "bad")
    slashed = replace(
        one,
        candidates=tuple(
            replace(candidate, candidate_id=f"org/model/{at}") for at, candidate in enumerate(one.candidates)
        ),
    )
    found = [
        Rating(f"{one.item_id}/org/model/{at}", rating, rating, rating, 1)
        for at, rating in enumerate((1100.0, 900.0))
    ]
    assert [row["target"] for row in target_rows([slashed], found)] == [1.0, -1.0]
    assert items_of([slashed]) == dict.fromkeys((rating.subject for rating in found), one.item_id)


def test_no_two_candidates_are_rated_as_one() -> None:
    """The slash between item and candidate is the first one, so a/b of c and a of b/c are two."""
    assert rated_name("a", "b/c") == "a/b/c"
    assert rated_name("a/b", "c") == "a%2Fb/c"
    assert rated_name("a%2Fb", "c") == "a%252Fb/c"


def test_rows_of_targets_are_of_rated_answers_alone() -> None:
    """Prompt, answer and target belong together; the interval stays beside it; what was never compared has no row."""
    one, other = item(1, "good", "bad", "never seen"), item(2, "x", "y")
    found = [
        Rating(f"{of.item_id}/c{at}", rating, rating - 5, rating + 5, 3)
        for of, at, rating in ((one, 0, 1030.0), (one, 1, 970.0), (other, 0, 1010.0), (other, 1, 990.0))
    ]
    rows = list(target_rows([one, other], found))
    assert [(row["completion"][0]["content"], row["prompt_id"]) for row in rows] == [
        ("good", "prompt-1"),
        ("bad", "prompt-1"),
        ("x", "prompt-2"),
        ("y", "prompt-2"),
    ]
    step = 1 / (1000 / 2) ** 0.5  # of the squared deviations 900, 900, 100, 100 the mean is 500
    assert [row["target"] for row in rows] == pytest.approx([30 * step, -30 * step, 10 * step, -10 * step])
    assert (rows[0]["rating"], rows[0]["low"], rows[0]["high"], rows[0]["comparisons"]) == (
        1030,
        1025,
        1035,
        3,
    )
