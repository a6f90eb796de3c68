"""Threads for sources that score row after row: bounded, cancellable, deadline-aware. Knows no source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from services.common.errors import Expired, Overloaded
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceClosed

Work = Callable[[Sequence[ScoreRow]], list[ScoreOutcome]]


class RowPool:
    """A thread pool that holds at most `max_rows` rows; one batch larger than that is taken when it is empty."""

    def __init__(self, name: str, *, threads: int, max_rows: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=f"reward-{name}")
        self._name = name
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._rows = 0
        self._closed = False

    def submit(self, rows: Sequence[ScoreRow], caller: Caller, work: Work) -> Future[list[ScoreOutcome]]:
        """Do `work(rows)` on a thread. Overloaded where there is no room, SourceClosed after close()."""
        with self._lock:
            if self._closed:
                raise SourceClosed(f"{self._name} has been taken away")
            if self._rows and self._rows + len(rows) > self._max_rows:
                raise Overloaded(f"{self._rows} rows wait for {self._name}, the limit is {self._max_rows}")
            self._rows += len(rows)
            # The executor keeps what was cancelled until a thread comes to it: not the rows, of which none are counted.
            held = [rows]
            future = self._executor.submit(self._run, held, caller, work)
        future.add_done_callback(partial(self._leave, held, len(rows)))
        return future

    def close(self) -> None:
        """Finish what was submitted."""
        with self._lock:
            self._closed = True
        self._executor.shutdown(wait=True)

    def _run(self, held: list[Sequence[ScoreRow]], caller: Caller, work: Work) -> list[ScoreOutcome]:
        if caller.deadline is not None and time.monotonic() >= caller.deadline:
            raise Expired("the deadline passed before it was this call's turn")
        return work(held[0])

    def _leave(self, held: list[Sequence[ScoreRow]], rows: int, _: Future[list[ScoreOutcome]]) -> None:
        held.clear()
        with self._lock:
            self._rows -= rows
