"""Slices of work in turn: who is next, and what is dropped between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from services.common.errors import Expired
from services.reward.rewards.base import Caller
from services.reward.rewards.turns import SLICE_ROWS, Turns, in_slices


class ByHand(Executor):
    """A thread that does its next piece of work when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def run(self, pieces: int = 1_000) -> None:
        for _ in range(pieces):
            if self.waiting:
                self.waiting.pop(0)()


class Work:
    """Notes whose rows it has done."""

    def __init__(self) -> None:
        self.executor = ByHand()
        self.turns = Turns(self.executor)
        self.done: list[str] = []

    def begin(self, name: str, slices: float, caller: Caller | None = None) -> Future[int]:
        rows = [name] * int(slices * SLICE_ROWS)
        client = Caller(client=name) if caller is None else caller
        return in_slices(self.turns, rows, client, self._one, lambda made, _: len(made))

    def _one(self, name: str) -> str:
        if name == "broken":
            raise ValueError("broken")
        self.done.append(name)
        return name

    def slices(self) -> str:
        """The first letters of those whose slices were done, in order."""
        found = ""
        last = 0
        for index, name in enumerate(self.done, 1):
            if index == len(self.done) or self.done[index] != name or index - last == SLICE_ROWS:
                found += name[0]
                last = index
        return found


def test_clients_take_turns_slice_by_slice() -> None:
    """A small call is through after one slice of each other client, however many rows and calls those have."""
    work = Work()
    flood = [work.begin("big", 3), work.begin("big", 3)]
    work.executor.run(1)
    small = work.begin("small", 0.5)
    work.executor.run(2)
    assert work.slices() == "bbs"
    assert small.result(0) == SLICE_ROWS // 2
    work.executor.run()
    assert [each.result(0) for each in flood] == [3 * SLICE_ROWS] * 2
    assert work.slices() == "bbs" + "b" * 4


def test_no_rows_are_done_at_once() -> None:
    """Nothing to do is done in its turn."""
    work = Work()
    nothing = work.begin("none", 0)
    work.executor.run()
    assert nothing.result(0) == 0


def test_who_has_gone_costs_no_more_slices() -> None:
    """A call that is cancelled between two slices ends there."""
    work = Work()
    gone = work.begin("gone", 3)
    work.executor.run(1)
    assert gone.cancel()
    work.executor.run()
    assert work.slices() == "g"
    assert not work.executor.waiting


def test_a_deadline_ends_a_call_between_slices() -> None:
    """Nobody waits for the rest: it is Expired, and nothing more of it is done."""
    work = Work()
    caller = Caller(client="late", deadline=time.monotonic() - 1)
    late = work.begin("late", 3, caller)
    work.executor.run()
    with pytest.raises(Expired):
        late.result(0)
    assert not work.done


def test_an_error_is_the_calls_alone() -> None:
    """What one call's row raises ends that call, and the next has its turn."""
    work = Work()
    broken, fine = work.begin("broken", 2), work.begin("fine", 1)
    work.executor.run()
    with pytest.raises(ValueError, match="broken"):
        broken.result(0)
    assert fine.result(0) == SLICE_ROWS
