"""Running normalisation: moments by hand, errors that pass through, digests that follow the moments."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.common.errors import ServiceError, Unavailable
from services.reward.config import RunningSpec
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.rewards.running import Moments, RunningReward
from tests.unit.reward.rewards.test_composite import Part

SPEC = RunningSpec(model="hh", single_replica=True)
ROW = ScoreRow(messages=(("user", "q"),), completion="a")


def scored(source: RunningReward, rows: int = 1) -> list[ScoreOutcome]:
    return source.submit([ROW] * rows, Caller()).result(timeout=10)


def test_moments_by_hand() -> None:
    """1, 2, 3, 6 in two calls: mean 3, deviation sqrt(3.5), the same as at once."""
    moments = Moments().with_values([1.0, 2.0]).with_values([3.0, 6.0])
    assert (moments.count, moments.mean, moments.deviation) == (4, 3.0, pytest.approx(3.5**0.5))
    assert moments.squares == pytest.approx(Moments().with_values([1.0, 2.0, 3.0, 6.0]).squares)


def test_a_call_counts_in_its_own_moments() -> None:
    """The first call 1, 3 has mean 2 and deviation 1; a second 5, 3 has mean 3 and deviation sqrt(2)."""
    part = Part([1.0, 3.0])
    source = RunningReward(SPEC, part)
    assert [each.value for each in scored(source, 2)] == [-1.0, 1.0]
    part.answer = [5.0, 3.0]
    second = scored(source, 2)
    assert [each.value for each in second] == [pytest.approx(2**0.5), 0.0]
    assert [each.components for each in second] == [{"hh": 5.0}, {"hh": 3.0}]


def test_equal_values_are_zero() -> None:
    """As long as nothing varies the deviation is 1, so that nothing is divided by 0."""
    assert [each.value for each in scored(RunningReward(SPEC, Part([4.0, 4.0])), 2)] == [0.0, 0.0]


def test_a_value_is_clipped() -> None:
    """The one that stands out of 201 is 14.1 deviations away and answers 10."""
    assert scored(RunningReward(SPEC, Part([0.0] * 200 + [1.0])), 201)[-1].value == 10.0


def test_an_error_moves_no_moments() -> None:
    """A row that has no value keeps its error, and the other is normalised as if it were alone."""
    error, value = scored(RunningReward(SPEC, Part([ServiceError("no"), 2.0])), 2)
    assert (error.value, str(error.error), value.value) == (None, "no", 0.0)


def test_the_digest_follows_the_moments() -> None:
    """Two calls that saw other moments name other digests; those of one call name the same."""
    source = RunningReward(SPEC, Part([1.0, 2.0]))
    first, second = scored(source, 2), scored(source, 2)
    assert first[0].digest == first[1].digest != second[0].digest == source.digest


def test_a_swap_begins_anew_and_an_equal_component_does_not() -> None:
    """Moments belong to what was scored: another digest starts over, the same goes on."""
    source = RunningReward(SPEC, Part([1.0, 3.0], digest="old"))
    scored(source, 2)
    kept = source.with_components({"hh": Part([2.0], digest="old")})
    fresh = source.with_components({"hh": Part([2.0], digest="new")})
    assert kept.digest == source.digest != fresh.digest
    assert scored(kept)[0].value == scored(fresh)[0].value == 0.0
    fresh_again = fresh.with_components({"hh": Part([4.0], digest="new")})
    assert scored(fresh_again)[0].value == 1.0  # of 2 and 4; 1 and 3 are forgotten


def test_without_its_component_it_is_unavailable() -> None:
    """What it normalises is not there: said, not scored."""
    with pytest.raises(Unavailable, match="component hh"):
        scored(RunningReward(SPEC))


def test_one_replica_must_be_said() -> None:
    """A configuration that does not say so is refused."""
    for extra in ({}, {"single_replica": False}):
        with pytest.raises(ValidationError, match=r"single_?[rR]eplica"):
            RunningSpec.model_validate({"model": "hh", **extra})
