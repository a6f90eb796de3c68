"""Loading by callers that do not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from services.reward.administration import Administration
from services.reward.config import SourceSpec
from services.reward.futures import done
from services.reward.rewards.base import Caller, RewardSource, ScoreOutcome, ScoreRow, SourceDescription
from services.reward.rewards.base import SourceKind as Kind
from services.reward.scoring import RewardModels

RULE = SourceSpec(rule="length")


class Opened:
    """A source that says when it is closed."""

    kind: Kind = "rule"
    digest = "d"

    def __init__(self) -> None:
        self.closed = threading.Event()

    def describe(self) -> SourceDescription:
        return SourceDescription()

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        return done([])

    def close(self) -> None:
        self.closed.set()


class Opening:
    """Opens when it may; notes what it has opened."""

    def __init__(self) -> None:
        self.begun, self.may = threading.Event(), threading.Event()
        self.made: list[Opened] = []

    def __call__(self, definition: SourceSpec, name: str) -> RewardSource:
        self.begun.set()
        assert self.may.wait(20)
        self.made.append(Opened())
        return self.made[-1]


@pytest.mark.parametrize("swap", [False, True], ids=["load", "swap"])
async def test_a_caller_that_gives_up_leaves_nothing_open(swap: bool) -> None:
    """What was opened for it is closed, the table stays, and no other change begins while it is still opening."""
    models, opening = RewardModels(), Opening()
    administration = Administration(models, opening, on_load=lambda: None)
    there = Opened()
    if swap:
        models.add("m", there)
    change = administration.swap("m", RULE) if swap else administration.load("m", RULE)
    given_up = asyncio.create_task(change)
    await asyncio.to_thread(opening.begun.wait, 20)
    given_up.cancel()
    later = asyncio.create_task(administration.load("other", RULE))
    await asyncio.sleep(0.05)
    assert not given_up.done() and not opening.made
    opening.may.set()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await later
    first, second = opening.made
    assert await asyncio.to_thread(first.closed.wait, 20)
    assert not second.closed.is_set() and not there.closed.is_set()
    assert models.names() == (["m", "other"] if swap else ["other"])
