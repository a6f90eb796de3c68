"""What watches scoring, where a digest changes without a change of the table."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.reward.config import CompositeSpec, RunningSpec
from services.reward.drift import DriftSpec
from services.reward.futures import done
from services.reward.request_log import RequestLogSpec
from services.reward.rewards.base import (
    Caller,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    SourceKind,
)
from services.reward.rewards.composite import CompositeReward
from services.reward.rewards.running import RunningReward
from services.reward.scoring import RewardModels
from services.reward.watching import Watch

SPEC = DriftSpec(reference_rows=400, window_rows=400)
ROWS = [ScoreRow(messages=(), completion="c" * (5 + index % 7)) for index in range(400)]


class Elsewhere:
    """A model of another service, which may swap it: its rows name the digest that scored them."""

    kind: SourceKind = "remote"

    def __init__(self) -> None:
        self.digest = "one"
        self.mean = 0.0
        self._random = np.random.default_rng(1)

    def describe(self) -> SourceDescription:
        return SourceDescription()

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        values = self._random.normal(self.mean, 1, len(rows))
        return done([ScoreOutcome(value=float(value), digest=self.digest) for value in values])

    def swap(self, digest: str, mean: float) -> None:
        self.digest, self.mean = digest, mean

    def close(self) -> None:
        pass


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"trimtab_reward_{name}", labels)


def watched() -> tuple[Watch, RewardModels]:
    watch = Watch(SPEC, RequestLogSpec(), limit_rows=10)
    return watch, RewardModels(watch)


def score(watch: Watch, models: RewardModels, name: str, calls: int) -> None:
    for _ in range(calls):
        watch.answered(models.score(name, ROWS), ROWS, Caller(), 0.0)


@pytest.mark.parametrize("name", ["w-remote", "w-sum"])
def test_a_swap_elsewhere_is_a_swap(name: str) -> None:
    """A remote's new digest, and that of a composite over it, renews model_info and begins a new reference."""
    watch, models = watched()
    there = Elsewhere()
    models.add("w-remote", there)
    spec = CompositeSpec.model_validate({"components": [{"model": "w-remote", "weight": 1.0}]})
    models.add("w-sum", CompositeReward(spec, {}))
    kind = models.slot(name).source.kind
    score(watch, models, name, 2)
    before = models.slot(name).source.digest
    assert value("model_info", model=name, kind=kind, digest=before) == 1
    assert value("drift_mean", model=name, window="reference") == pytest.approx(0, abs=0.2)
    there.swap("two", mean=50)
    score(watch, models, name, 2)
    after = models.slot(name).source.digest
    assert value("model_info", model=name, kind=kind, digest=before) is None
    assert value("model_info", model=name, kind=kind, digest=after) == 1
    assert value("swaps_total", model=name) == 1
    assert value("drift_mean", model=name, window="reference") == pytest.approx(50, abs=0.2)
    assert value("drift_alarm", model=name, kind="psi") == 0
    watch.closed("w-sum")
    watch.closed("w-remote")


def test_a_late_answer_of_the_model_before_counts_nowhere() -> None:
    """Rows that were scored before a swap, here or elsewhere, are in no figure of what came after."""
    watch, models = watched()
    there = Elsewhere()
    models.add("w-late", there)
    late = models.score("w-late", ROWS)
    there.swap("two", mean=50)
    score(watch, models, "w-late", 2)
    watch.answered(late, ROWS, Caller(), 0.0)
    assert value("drift_mean", model="w-late", window="current") == pytest.approx(50, abs=0.2)
    last = models.score("w-late", ROWS)
    # Another source of the same digest has figures of its own.
    again = Elsewhere()
    again.swap("two", mean=50)
    models.swap("w-late", again)
    watch.answered(last, ROWS, Caller(), 0.0)
    watch.answered(last, ROWS, Caller(), 0.0)
    assert value("drift_psi", model="w-late") is None
    watch.closed("w-late")


def test_running_normalisation_is_watched_all_the_while() -> None:
    """Its digest follows its moments with every call; its drift goes on, and nobody is told of a swap."""
    watch, models = watched()
    there = Elsewhere()
    models.add("w-raw", there)
    models.add("w-run", RunningReward(RunningSpec(model="w-raw", single_replica=True)))
    score(watch, models, "w-run", 2)
    assert value("drift_alarm", model="w-run", kind="psi") == 0
    there.mean = 5
    score(watch, models, "w-run", 1)
    assert value("drift_alarm", model="w-run", kind="psi") == 1
    assert value("swaps_total", model="w-run") == 0
    watch.closed("w-run")
    watch.closed("w-raw")
