"""The table of sources: lookups, swaps, composites made anew, what may not be taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import pytest

from services.common.errors import AlreadyExists, InvalidInput, Mismatch, NotFound
from services.reward.futures import done
from services.reward.rewards.base import (
    Caller,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceClosed,
    SourceDescription,
    SourceKind,
)
from services.reward.scoring import RewardModels

ROW = ScoreRow(messages=(("user", "q"),), completion="a")


class Fixed:
    """Scores everything by one number, which is its digest too."""

    kind: SourceKind = "model"

    def __init__(self, value: float) -> None:
        self.value = value
        self.closed = False

    @property
    def digest(self) -> str:
        return str(self.value)

    def describe(self) -> SourceDescription:
        return SourceDescription()

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        if self.closed:
            raise SourceClosed("gone")
        return done([ScoreOutcome(value=self.value) for _ in rows])

    def close(self) -> None:
        self.closed = True


class Sum(Fixed):
    """The sum of its components."""

    kind: SourceKind = "composite"

    def __init__(self, needs: Sequence[str], parts: Mapping[str, RewardSource] | None = None) -> None:
        super().__init__(sum(float(part.digest) for part in (parts or {}).values()))
        self._needs = frozenset(needs)

    @property
    def needs(self) -> frozenset[str]:
        return self._needs

    def with_components(self, components: Mapping[str, RewardSource]) -> RewardSource:
        return Sum(tuple(self._needs), components)


def value(models: RewardModels, name: str) -> tuple[float | None, str]:
    scored = models.score(name, [ROW])
    return scored.outcomes[0].value, scored.digest


def test_a_swap_changes_value_and_digest_together() -> None:
    """Scores after a swap are of the new source and say so; the old one is handed over to be closed."""
    models = RewardModels()
    models.add("m", Fixed(1))
    assert value(models, "m") == value(models, "") == (1, "1")
    assert models.swap("m", Fixed(2)).digest == "1"
    assert value(models, "m") == (2, "2")


def test_a_source_closed_between_lookup_and_question_is_asked_anew() -> None:
    """A call that met the old source just after it was closed is scored by the new one."""
    models = RewardModels()
    new = Fixed(2)

    class Swapping(Fixed):
        def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
            models.swap("m", new)
            raise SourceClosed("gone")

    models.add("m", Swapping(1))
    assert value(models, "m") == (2, "2")
    new.close()
    with pytest.raises(SourceClosed):
        models.score("m", [ROW])


def test_a_composite_follows_its_components() -> None:
    """It is made anew with each swap, digest and all, so that no score mixes old and new."""
    models = RewardModels()
    models.add("a", Fixed(1))
    models.add("b", Fixed(10))
    models.add("both", Sum(["a", "b"]))
    assert value(models, "both") == (11, "11.0")
    models.swap("b", Fixed(20))
    assert value(models, "both") == (21, "21.0")
    with pytest.raises(Mismatch, match="component of both"):
        models.remove("a")


def test_a_composite_of_nothing_or_of_composites_is_refused() -> None:
    """A component that is not loaded, and one that is a composite itself; the table stays as it was."""
    models = RewardModels()
    models.add("a", Fixed(1))
    with pytest.raises(NotFound, match="component z of both is not loaded"):
        models.add("both", Sum(["a", "z"]))
    models.add("both", Sum(["a"]))
    with pytest.raises(InvalidInput, match="component both of more is itself made of others"):
        models.add("more", Sum(["both"]))
    assert models.names() == ["a", "both"]


def test_what_others_depend_on_stays() -> None:
    """A shadow, a component and the queue's model cannot be taken away; a free one can."""
    models = RewardModels()
    for name in ("m", "shadow", "queue", "free"):
        models.add(name, Fixed(1))
    models.set_shadow("m", "shadow")
    models.hold("queue")
    with pytest.raises(Mismatch, match="is the shadow of m"):
        models.remove("shadow")
    with pytest.raises(Mismatch, match="serves the queue"):
        models.remove("queue")
    models.remove("free")
    with pytest.raises(NotFound):
        models.slot("free")
    with pytest.raises(AlreadyExists):
        models.add("m", Fixed(2))
    with pytest.raises(InvalidInput, match="another model"):
        models.set_shadow("m", "m")


class Listener:
    """Keeps the names behind which a source was put."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def opened(self, model: str, source: RewardSource) -> None:
        self.heard.append(model)

    def closed(self, model: str) -> None:
        self.heard.append(f"-{model}")


def test_a_shadow_is_no_swap() -> None:
    """Setting one leaves every source what it was, composites and their components too, and nobody hears of it."""
    listener = Listener()
    models = RewardModels(listener)
    models.add("a", Fixed(1))
    models.add("both", Sum(["a"]))
    models.add("other", Fixed(3))
    composed = models.slot("both").source
    for name in ("a", "both"):
        models.set_shadow(name, "other")
        assert models.slot(name).shadow == "other"
    assert models.slot("both").source is composed
    assert listener.heard == ["a", "both", "other"]
    models.swap("a", Fixed(2))
    assert models.slot("a").shadow == "other"
    assert listener.heard == ["a", "both", "other", "a", "both"]
