"""Composites: the two aggregations by hand, errors that name their component, digests that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from services.common.errors import (
    Corrupted,
    Expired,
    InvalidInput,
    Overloaded,
    ServiceError,
    TrimtabError,
    Unavailable,
)
from services.reward.config import CompositeSpec
from services.reward.futures import done, failed
from services.reward.rewards.base import (
    Caller,
    ComposedSource,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceClosed,
    SourceDescription,
    SourceKind,
)
from services.reward.rewards.composite import CompositeReward

ROW = ScoreRow(messages=(("user", "q"),), completion="a")


class Part:
    """Answers every call with what the test has put there."""

    kind: SourceKind = "model"

    def __init__(
        self,
        answer: Future[list[ScoreOutcome]] | Exception | Sequence[float | TrimtabError],
        digest: str = "d",
        about: SourceDescription | None = None,
    ) -> None:
        self.answer = answer
        self.digest = digest
        self.about = about or SourceDescription()
        self.callers: list[Caller] = []

    def describe(self) -> SourceDescription:
        return self.about

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        self.callers.append(caller)
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, Future):
            return self.answer
        return done(
            [
                ScoreOutcome(error=each) if isinstance(each, TrimtabError) else ScoreOutcome(value=each)
                for each in self.answer
            ]
        )

    def close(self) -> None:
        raise AssertionError("a composite does not own its components")


def composite(
    parts: Mapping[str, RewardSource], options: Mapping[str, Mapping[str, Any]] | None = None, **fields: Any
) -> CompositeReward:
    components = [{"model": name, **((options or {}).get(name, {}))} for name in parts]
    return CompositeReward(CompositeSpec.model_validate({"components": components, **fields}), parts)


def scored(source: RewardSource, rows: int = 1, caller: Caller | None = None) -> list[ScoreOutcome]:
    return source.submit([ROW] * rows, caller or Caller()).result(timeout=10)


OPTIONS: dict[str, dict[str, Any]] = {"a": {"weight": 2.0}, "b": {"weight": -0.5, "clip": [-1.0, 1.0]}}


def test_sum_then_normalize_by_hand() -> None:
    """(2 * 3 - 0.5 * clip(7) - 1.5) / 4 = 1 and (2 * 1 - 0.5 * clip(-0.5) - 1.5) / 4 = 0.1875."""
    source = composite({"a": Part([3.0, 1.0]), "b": Part([7.0, -0.5])}, OPTIONS, mean=1.5, deviation=4.0)
    outcomes = scored(source, 2)
    assert [outcome.value for outcome in outcomes] == [1.0, 0.1875]
    assert [dict(outcome.components) for outcome in outcomes] == [{"a": 3.0, "b": 7.0}, {"a": 1.0, "b": -0.5}]


def test_normalize_then_sum_by_hand() -> None:
    """2 * (3 - 1) / 4 - 0.5 * (clip(7) - 0.5) / 0.25 = 1 - 1 = 0."""
    options = {
        "a": {**OPTIONS["a"], "mean": 1.0, "deviation": 4.0},
        "b": {**OPTIONS["b"], "mean": 0.5, "deviation": 0.25},
    }
    source = composite({"a": Part([3.0]), "b": Part([7.0])}, options, aggregation="normalize_then_sum")
    [outcome] = scored(source)
    assert outcome.value == 0.0
    assert dict(outcome.components) == {"a": 3.0, "b": 7.0}


def test_the_final_clip_comes_last() -> None:
    """The composite's own clip bounds the normalised value."""
    source = composite({"a": Part([30.0, -30.0, 1.0])}, mean=1.0, deviation=2.0, clip=[-2.0, 3.0])
    assert [outcome.value for outcome in scored(source, 3)] == [3.0, -2.0, 0.0]


def test_without_options_it_is_the_sum() -> None:
    """Weights 1, no clip, no normalisation."""
    assert scored(composite({"a": Part([1.5]), "b": Part([2.0])}))[0].value == 3.5


def test_a_failing_component_is_the_rows_error_and_not_a_zero() -> None:
    """The row has the component's status and name, its violations, and the components that did score."""
    bad = InvalidInput("column answer is missing", {"columns[answer]": "a value"})
    outcomes = scored(composite({"a": Part([1.0, 2.0]), "b": Part([bad, 3.0])}), 2)
    error = outcomes[0].error
    assert outcomes[0].value is None
    assert isinstance(error, InvalidInput)
    assert str(error) == "component b: column answer is missing"
    assert error.violations == bad.violations
    assert dict(outcomes[0].components) == {"a": 1.0}
    assert str(bad) == "column answer is missing"
    assert outcomes[1].value == 5.0


@pytest.mark.parametrize(
    ("ending", "kind", "says"),
    [
        (Unavailable("circuit open"), Unavailable, "component b: circuit open"),
        (RuntimeError("secret"), ServiceError, "component b: it failed"),
    ],
)
def test_a_component_that_fails_as_a_whole_fails_every_row(
    ending: Exception, kind: type[TrimtabError], says: str
) -> None:
    """An error of a component's call is every row's error; what was not meant for callers stays in the log."""
    for outcome in scored(composite({"a": Part([1.0, 2.0]), "b": Part(failed(ending))}), 2):
        assert isinstance(outcome.error, kind)
        assert says in str(outcome.error)
        assert "secret" not in str(outcome.error)


def test_a_wrong_number_of_scores_fails_every_row() -> None:
    """A component with fewer scores than rows is an error, never a shifted score."""
    outcomes = scored(composite({"a": Part([1.0, 2.0]), "b": Part([1.0])}), 2)
    assert ["component b: 1 scores for 2 rows" in str(outcome.error) for outcome in outcomes] == [True, True]


def test_an_infinite_sum_is_an_error() -> None:
    """Finite components whose sum is not finite are DATA_LOSS."""
    [outcome] = scored(composite({"a": Part([1.7e308]), "b": Part([1.7e308])}))
    assert outcome.value is None
    assert isinstance(outcome.error, Corrupted)


def test_an_expired_component_ends_the_call() -> None:
    """The caller's deadline is the same for all: the call ends as that of the component does."""
    with pytest.raises(Expired):
        scored(composite({"a": Part([1.0]), "b": Part(failed(Expired("late")))}))


@pytest.mark.parametrize("refusal", [Overloaded("full", 7.0), SourceClosed("gone")])
def test_what_is_refused_at_once_is_refused_as_a_whole(refusal: Exception) -> None:
    """A component without room refuses the call, so that the caller comes back; the others are cancelled."""
    waiting: Future[list[ScoreOutcome]] = Future()
    with pytest.raises(type(refusal)):
        composite({"a": Part(waiting), "b": Part(refusal)}).submit([ROW], Caller())
    assert waiting.cancelled()


def test_components_are_asked_at_once_and_cancelled_together() -> None:
    """All components have the call before the first has answered; cancelling reaches each."""
    parts = {name: Part(Future()) for name in "abc"}
    caller = Caller(client="c", deadline=1e9)
    future = composite(parts).submit([ROW], caller)
    assert [part.callers for part in parts.values()] == [[caller]] * 3
    assert future.cancel()
    assert all(isinstance(part.answer, Future) and part.answer.cancelled() for part in parts.values())


def test_what_was_cut_is_the_most_that_a_component_cut() -> None:
    """truncated_tokens is the components' maximum."""
    cut = Part(done([ScoreOutcome(value=1.0, truncated_tokens=7, steps=(1.0, 2.0))]))
    [outcome] = scored(composite({"a": Part([1.0]), "b": cut}))
    assert outcome.truncated_tokens == 7
    assert outcome.steps == ()


def test_the_digest_is_of_the_configuration_and_the_components() -> None:
    """Another weight, another component and another aggregation are other digests; the same twice is one."""
    parts = {"a": Part([1.0], "1"), "b": Part([1.0], "2")}
    digests = [
        composite(parts).digest,
        composite(parts, {"a": {"weight": 2.0}}).digest,
        composite({"a": Part([1.0], "1"), "b": Part([1.0], "3")}).digest,
        composite(parts, aggregation="normalize_then_sum").digest,
    ]
    assert len(set(digests)) == 4
    assert composite({"a": Part([5.0], "1"), "b": Part([1.0], "2")}).digest == digests[0]


def test_a_digest_that_a_component_names_for_a_row_is_in_the_rows_digest() -> None:
    """A row that a swapped remote scored has the digest of the composite with that remote's new digest."""
    answers = done([ScoreOutcome(value=1.0, digest="2"), ScoreOutcome(value=1.0, digest="3")])
    source = composite({"a": Part([1.0, 1.0], "1"), "b": Part(answers, "2")})
    outcomes = scored(source, 2)
    assert outcomes[0].digest == source.digest
    assert outcomes[1].digest == composite({"a": Part([1.0], "1"), "b": Part([1.0], "3")}).digest
    assert scored(composite({"a": Part([1.0])}))[0].digest == ""


def test_it_is_made_anew_of_other_components() -> None:
    """with_components gives the same composition of other sources; the first one stays what it was."""
    first = composite({"a": Part([1.0], "1"), "b": Part([2.0], "2")}, OPTIONS)
    second = first.with_components({"a": Part([10.0], "1"), "b": Part([0.0], "2"), "c": Part([9.0])})
    assert isinstance(first, ComposedSource)
    assert first.needs == frozenset("ab")
    assert scored(first)[0].value == 1.5
    assert scored(second)[0].value == 20.0
    assert second.digest == first.digest
    first.close()


def test_without_its_components_it_says_which_is_missing() -> None:
    """A composite that the table has not filled yet is UNAVAILABLE, naming a component."""
    empty = CompositeReward(CompositeSpec.model_validate({"components": [{"model": "a"}]}), {})
    with pytest.raises(Unavailable, match="component a is not loaded"):
        empty.submit([ROW], Caller())
    assert empty.describe() == SourceDescription()
    assert empty.digest


def test_it_reads_what_its_components_read() -> None:
    """Messages before text; the shortest limit; a side where one is cut."""
    parts = {
        "a": Part([1.0], about=SourceDescription(input_kind="text")),
        "b": Part([1.0], about=SourceDescription(input_kind="messages", truncates="left", max_tokens=512)),
        "c": Part([1.0], about=SourceDescription(max_tokens=128, truncates="right")),
    }
    about = composite(parts).describe()
    assert (about.input_kind, about.truncates, about.max_tokens) == ("messages", "left", 128)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"components": [{"model": "a"}, {"model": "a"}]}, "component a is named twice"),
        ({"clip": [1.0, 1.0]}, "low below high"),
        ({"components": [{"model": "a", "mean": 1.0}]}, "of the composite, not of its components"),
        ({"components": [{"model": "a", "deviation": 2.0}]}, "of the composite, not of its components"),
        ({"aggregation": "normalize_then_sum", "deviation": 2.0}, "of each component, not of the composite"),
    ],
)
def test_what_would_be_left_out_of_account_is_refused(fields: dict[str, Any], says: str) -> None:
    """A number that the aggregation does not use, or a component twice, is InvalidInput."""
    spec = CompositeSpec.model_validate({"components": [{"model": "a"}], **fields})
    with pytest.raises(InvalidInput, match=says):
        CompositeReward(spec, {})
