"""Admission: how much, what next, and how old is too old."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Corrupted
from services.common.spec.run import RolloutSpec
from services.learner.admission import Versions, prompt_index, room
from services.models.manifest import Version


@pytest.mark.parametrize(
    ("staleness", "in_flight", "steps_left", "expected"),
    [
        (0, 0, 10, 8),  # one batch
        (0, 5, 10, 3),
        (0, 8, 10, 0),
        (2, 0, 10, 24),  # (2 + 1) * 8
        (2, 20, 10, 4),
        (2, 0, 2, 16),  # no more than two last steps can use
        (2, 0, 1, 8),
        (2, 20, 1, 0),  # never negative
        (2, 0, 0, 0),
    ],
)
def test_room(staleness: int, in_flight: int, steps_left: int, expected: int) -> None:
    """(max_staleness + 1) * batch - in flight, at most what the remaining steps use."""
    spec = RolloutSpec(batch_groups=8, max_staleness=staleness)
    assert room(spec, in_flight=in_flight, steps_left=steps_left) == expected


@given(st.integers(1, 40), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_each_pass_is_a_permutation(prompts: int, seed: int, lap: int) -> None:
    """Every prompt once in every pass over the data, the same for the same seed."""
    places = range(lap * prompts, (lap + 1) * prompts)
    order = [prompt_index(place, prompts, seed=seed, shuffle=True) for place in places]
    assert sorted(order) == list(range(prompts))
    assert order == [prompt_index(place, prompts, seed=seed, shuffle=True) for place in places]
    assert [prompt_index(place, prompts, seed=seed, shuffle=False) for place in places] == list(
        range(prompts)
    )


def test_a_pass_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million prompts that takes long, and each group of a batch asks for its place."""
    drawn = []
    made = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or made(seed))
    for place in range(40):
        prompt_index(place, 20, seed=987_654, shuffle=True)
    assert drawn == [(987_654, 77, 0), (987_654, 77, 1)]


def test_passes_and_seeds_shuffle_differently() -> None:
    """The second pass is not the first again, nor is another seed's."""

    def order(lap: int, seed: int) -> tuple[int, ...]:
        return tuple(prompt_index(lap * 50 + at, 50, seed=seed, shuffle=True) for at in range(50))

    assert len({order(0, 1), order(1, 1), order(0, 2), order(1, 2)}) == 4


def test_staleness_is_that_of_the_oldest_weights() -> None:
    """Whatever the epoch, by digest; weights that nobody knows have none."""
    versions = Versions({})
    for step, digest in ((3, "a"), (4, "b"), (5, "c")):
        versions.publish(Version(1, step, digest))
    assert versions.staleness(["c"], 5) == 0
    assert versions.staleness(["a"], 5) == 2
    assert versions.staleness(["c", "a", "b"], 6) == 3
    assert versions.staleness(["c", "unknown"], 5) is None
    assert versions.staleness([], 5) is None


def test_weights_that_did_not_change_do_not_age() -> None:
    """A digest that is published again at a later step counts from there."""
    versions = Versions({})
    versions.publish(Version(1, 3, "a"))
    versions.publish(Version(1, 4, "b"))
    versions.publish(Version(1, 9, "a"))
    assert versions.staleness(["a"], 9) == 0
    assert versions.staleness(["b"], 9) == 5
    # As a checkpoint keeps them.
    assert Versions(dict(json.loads(json.dumps(list(versions.step_of.items()))))) == versions


def test_a_name_stands_for_one_digest() -> None:
    """Other weights under a published name are refused; names of other epochs, or forgotten, say nothing."""
    versions = Versions({}, remembered=2)
    for step, digest in enumerate("abc"):
        versions.publish(Version(1, step, digest))
    for fine in (Version(1, 2, "c"), Version(2, 2, "x"), Version(1, 0, "x")):
        versions.check(fine)
    with pytest.raises(Corrupted, match="a rollout names weights x as epoch 1, step 2; published were c"):
        versions.check(Version(1, 2, "x"))


def test_memory_of_versions_is_bounded() -> None:
    """The longest unpublished are forgotten, and then unknown."""
    versions = Versions({}, remembered=2)
    for step, digest in enumerate("abac"):
        versions.publish(Version(1, step, digest))
    assert versions.step_of == {"a": 2, "c": 3}
    assert versions.staleness(["b"], 3) is None
