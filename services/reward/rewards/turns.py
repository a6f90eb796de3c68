"""Work of many clients a slice at a time, a turn for each client. Knows no work, and no room for its results.

    in_slices ──▶ a line for each client ──▶ one slice ──▶ more? to the end of its client's line, whose turn is last
                                              └─▶ all: then(results)        cancelled or expired between slices: dropped

A call of thousands of rows takes a few threads no longer from the others than a small one does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

from services.common.errors import Expired
from services.reward.futures import settle
from services.reward.rewards.base import Caller

SLICE_ROWS = 64
Row = TypeVar("Row")
Made = TypeVar("Made")
Result = TypeVar("Result")
# Does a part of the work; whether there is more.
Step = Callable[[], bool]


class Turns:
    """Steps on an executor's threads: one of each client in turn. For any thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        # The client whose turn it is stands first.
        self._lines: dict[str, deque[Step]] = {}
        self._lock = threading.Lock()

    def add(self, client: str, step: Step) -> None:
        """Do this step, again as long as there is more. It must not raise."""
        with self._lock:
            self._lines.setdefault(client, deque()).append(step)
        self._executor.submit(self._take)

    def _take(self) -> None:
        with self._lock:
            client = next(iter(self._lines))
            line = self._lines.pop(client)
            step = line.popleft()
            if line:
                self._lines[client] = line
        if step():
            self.add(client, step)


def in_slices(
    turns: Turns,
    rows: Sequence[Row],
    caller: Caller,
    each: Callable[[Row], Made],
    then: Callable[[list[Made], float], Result],
) -> Future[Result]:
    """The future of `then(each(row) of all rows, when the first slice began)`, of time.monotonic.

    Expired where the caller's deadline passes before the last slice. Cancelling it drops the slices to come.
    """
    future: Future[Result] = Future()
    made: list[Made] = []
    began: list[float] = []

    def step() -> bool:
        began.append(time.monotonic())
        if future.cancelled():
            # wait() ends with this alone.
            future.set_running_or_notify_cancel()
            return False
        try:
            if caller.deadline is not None and began[-1] >= caller.deadline:
                raise Expired("the deadline passed before it was this call's turn")
            made.extend(map(each, rows[len(made) : len(made) + SLICE_ROWS]))
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return False
        if len(made) < len(rows):
            return True
        if future.set_running_or_notify_cancel():
            settle(future, lambda: then(made, began[0]))
        return False

    turns.add(caller.client, step)
    return future
