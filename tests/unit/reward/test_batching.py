"""Continuous batching: what shares a run, whose turn it is, what is dropped, what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from services.common.errors import Expired, Overloaded, ServiceError
from services.reward.batching import Batcher, BatchFacts, Limits
from services.reward.rewards.base import Caller, SourceClosed

LIMITS = Limits(batch_tokens=10, queued_rows=20, queued_tokens=60)


class Model:
    """Gives each text its length; holds every run until the gate is open, and remembers the runs."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Semaphore(0)
        self.runs: list[list[str]] = []
        self.facts: list[BatchFacts] = []

    def run(self, rows: Sequence[str]) -> list[int]:
        self.runs.append(list(rows))
        self.began.release()
        assert self.gate.wait(10)
        if "poison" in rows:
            raise ServiceError("poison")
        return [len(row) for row in rows]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher[str, int]]:
    made: Batcher[str, int] = Batcher(
        "m", model.run, size=len, key=lambda row: row, limits=LIMITS, observe=model.facts.append
    )
    yield made
    model.gate.set()
    made.close()


def occupy(batcher: Batcher[str, int], model: Model) -> Future[list[int]]:
    """Begin a run that lasts until the gate opens, so that what follows has to wait together."""
    busy = batcher.submit(["x"], Caller())
    assert model.began.acquire(timeout=10)
    return busy


def test_a_lone_row_is_run_at_once(batcher: Batcher[str, int], model: Model) -> None:
    """Nothing waits for company: one row makes one run."""
    model.gate.set()
    assert batcher.submit(["abc"], Caller()).result(10) == [3]
    assert model.runs == [["abc"]]


def test_what_came_during_a_run_is_the_next_one(batcher: Batcher[str, int], model: Model) -> None:
    """Calls that wait share a run, up to the budget of tokens; every call gets its own rows, in order."""
    occupy(batcher, model)
    calls = [
        batcher.submit(["aa", "bbb"], Caller()),
        batcher.submit(["cccc"], Caller()),
        batcher.submit(["dd"], Caller()),
    ]
    model.gate.set()
    assert [call.result(10) for call in calls] == [[2, 3], [4], [2]]
    assert model.runs == [["x"], ["aa", "bbb", "cccc"], ["dd"]]


def test_a_row_larger_than_the_budget_runs_alone(batcher: Batcher[str, int], model: Model) -> None:
    """It neither waits forever nor takes others along."""
    occupy(batcher, model)
    calls = [batcher.submit(["y" * 30, "z"], Caller())]
    model.gate.set()
    assert calls[0].result(10) == [30, 1]
    assert model.runs[1:] == [["y" * 30], ["z"]]


def test_equal_rows_of_a_run_are_run_once(batcher: Batcher[str, int], model: Model) -> None:
    """Both callers get the score, the model sees one row."""
    occupy(batcher, model)
    calls = [
        batcher.submit(["same", "other"], Caller(client="a")),
        batcher.submit(["same"], Caller(client="b")),
    ]
    model.gate.set()
    assert [call.result(10) for call in calls] == [[4, 5], [4]]
    assert sum(run.count("same") for run in model.runs) == 1


def test_clients_take_turns(batcher: Batcher[str, int], model: Model) -> None:
    """A client with one row is in the next run, however many rows another has waiting."""
    occupy(batcher, model)
    flood = batcher.submit([f"flood{at}" for at in range(8)], Caller(client="big"))
    single = batcher.submit(["me"], Caller(client="small"))
    model.gate.set()
    single.result(10)
    flood.result(10)
    assert "me" in model.runs[1]


def test_cancelled_and_expired_rows_are_not_run(batcher: Batcher[str, int], model: Model) -> None:
    """Who went away, or whose deadline passed, costs no model time; the expired one is told."""
    occupy(batcher, model)
    gone = batcher.submit(["gone"], Caller(client="a"))
    late = batcher.submit(["late"], Caller(client="b", deadline=time.monotonic() - 1))
    kept = batcher.submit(["kept"], Caller(client="c"))
    assert gone.cancel()
    model.gate.set()
    assert kept.result(10) == [4]
    with pytest.raises(Expired):
        late.result(10)
    assert model.runs == [["x"], ["kept"]]


def test_a_full_queue_refuses(batcher: Batcher[str, int], model: Model) -> None:
    """Rows or tokens beyond the bound are refused at the door; an empty queue takes any one call."""
    occupy(batcher, model)
    whole = batcher.submit(["r"] * 25, Caller())
    with pytest.raises(Overloaded, match="25 rows"):
        batcher.submit(["s"], Caller())
    whole.cancel()
    model.gate.set()


def test_room_that_is_kept_counts_as_taken(batcher: Batcher[str, int], model: Model) -> None:
    """Rows on their way wait like those in line, until they are there or given up, once each."""
    occupy(batcher, model)
    coming, other = batcher.keep_room(15), batcher.keep_room(5)
    assert batcher.queued == (20, 0)
    with pytest.raises(Overloaded, match="20 rows"):
        batcher.submit(["s"], Caller())
    with pytest.raises(Overloaded):
        batcher.keep_room(1)
    arrived = batcher.submit(["r"] * 15, Caller(), coming)
    assert batcher.queued == (20, 15)
    for _ in range(2):
        batcher.give_up(coming)
        batcher.give_up(other)
    assert batcher.queued == (15, 15)
    batcher.keep_room(5)
    model.gate.set()
    assert arrived.result(10) == [1] * 15


def test_a_lone_call_beyond_the_bound_keeps_its_room(batcher: Batcher[str, int], model: Model) -> None:
    """What is taken because nothing waits is taken on its way already, and nobody else beside it."""
    occupy(batcher, model)
    large = batcher.keep_room(25)
    with pytest.raises(Overloaded):
        batcher.keep_room(1)
    whole = batcher.submit(["r"] * 25, Caller(), large)
    model.gate.set()
    assert whole.result(10) == [1] * 25


def test_cancelled_rows_make_room(batcher: Batcher[str, int], model: Model) -> None:
    """A flood that is cancelled does not keep others out."""
    occupy(batcher, model)
    batcher.submit(["r"] * 20, Caller()).cancel()
    kept = batcher.submit(["s"], Caller())
    model.gate.set()
    assert kept.result(10) == [1]


def test_a_run_that_fails_fails_its_calls_and_nothing_else(batcher: Batcher[str, int], model: Model) -> None:
    """The error reaches who was in that run; the thread goes on."""
    model.gate.set()
    with pytest.raises(ServiceError, match="poison"):
        batcher.submit(["poison"], Caller()).result(10)
    assert batcher.submit(["fine"], Caller()).result(10) == [4]


def test_closing_finishes_what_waits(model: Model) -> None:
    """What was taken is scored, what comes later is told that the model has gone."""
    batcher: Batcher[str, int] = Batcher("m", model.run, size=len, key=lambda row: row, limits=LIMITS)
    occupy(batcher, model)
    waiting = batcher.submit(["last"], Caller())
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.gate.set()
    closing.join(10)
    assert waiting.result(10) == [4]
    with pytest.raises(SourceClosed):
        batcher.submit(["too late"], Caller())


def test_runs_are_observed(batcher: Batcher[str, int], model: Model) -> None:
    """Rows, distinct rows and tokens of a run are what it was made of."""
    busy = occupy(batcher, model)
    call = batcher.submit(["same", "same", "b"], Caller())
    model.gate.set()
    busy.result(10)
    call.result(10)
    batcher.close()
    assert [(facts.rows, facts.distinct, facts.tokens) for facts in model.facts] == [(1, 1, 1), (3, 2, 5)]


def test_no_rows_are_answered_at_once(batcher: Batcher[str, int]) -> None:
    """An empty batch has an empty answer: all of its rows may have been unreadable."""
    assert batcher.submit([], Caller()).result(10) == []
