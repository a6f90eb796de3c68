"""Comparisons behind the answers: what is compared, what is left out, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common.errors import Overloaded, ServiceError, TrimtabError
from services.reward.futures import failed
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.scoring import RewardModels
from services.reward.shadow import ShadowRunner
from tests.unit.reward.http.served import Recorder

ROWS = [ScoreRow(messages=(), completion="ab")] * 3


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"trimtab_reward_shadow_{name}", labels) or 0.0


def offered(model: str, shadow: Recorder) -> list[str]:
    """The events that are logged where `model` has scored ROWS and this shadow is offered them."""
    models = RewardModels()
    models.add(model, Recorder())
    models.add("shadow", shadow)
    models.set_shadow(model, "shadow")
    with capture_logs() as lines:
        ShadowRunner(models).offer(models.score(model, ROWS), ROWS)
    return [line["event"] for line in lines]


def test_what_both_have_scored_is_compared() -> None:
    """The shadow's rows are counted by how far they are away, here 0.5."""
    shadow = Recorder([ScoreOutcome(value=2.5)] * 3)
    assert offered("s-compared", shadow) == ["shadow compared"]
    assert value("rows_total", model="s-compared", shadow="shadow") == 3
    within = [
        value("difference_bucket", model="s-compared", shadow="shadow", le=bound) for bound in ("0.3", "1.0")
    ]
    assert within == [0, 3]


class Late(Recorder):
    """Takes the rows, and fails then."""

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        return failed(self._refuses or AssertionError())


@pytest.mark.parametrize("kind", [Recorder, Late])
@pytest.mark.parametrize(
    ("error", "skipped", "logged"),
    [(Overloaded("full"), 3, []), (ServiceError("broken"), 0, ["shadow failed"])],
)
def test_a_full_shadow_is_counted_and_a_broken_one_is_told(
    kind: type[Recorder], error: TrimtabError, skipped: int, logged: list[str]
) -> None:
    """Under load a shadow is full all the time: its rows are counted as left out, and nobody is warned."""
    before = value("skipped_rows_total", model="s-full")
    assert offered("s-full", kind(refuses=error)) == logged
    assert value("skipped_rows_total", model="s-full") == before + skipped
