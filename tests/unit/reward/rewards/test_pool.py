"""What a pool of threads holds, and what it does not."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from services.common.errors import Overloaded
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.rewards.pool import RowPool


class Rows(list[ScoreRow]):
    """A batch that can be watched."""


def test_cancelled_calls_keep_no_rows() -> None:
    """Rows of a call that was cancelled before its turn are gone at once, as its place in the queue is."""
    pool, may = RowPool("p", threads=1, max_rows=4), threading.Event()

    def work(rows: object) -> list[ScoreOutcome]:
        assert may.wait(20)
        return [ScoreOutcome(value=1.0)]

    row = ScoreRow(messages=(), completion="a")
    running = pool.submit([row], Caller(), work)
    watched = []
    for _ in range(20):
        batch = Rows([row] * 3)
        watched.append(weakref.ref(batch))
        assert pool.submit(batch, Caller(), work).cancel()
        del batch
    gc.collect()
    assert not any(one() for one in watched)
    waiting = pool.submit([row] * 3, Caller(), work)
    with pytest.raises(Overloaded):
        pool.submit([row], Caller(), work)
    may.set()
    assert running.result(20) == waiting.result(20) == [ScoreOutcome(value=1.0)]
    pool.close()
