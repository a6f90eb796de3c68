"""Splits a call's rows into chunks for a RowPool's threads and puts the outcomes together. Knows no source."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from services.common.errors import Overloaded
from services.reward.futures import chained, gathered
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.rewards.pool import RowPool, Work


class ChunkedPool:
    """`threads` chunks of at most `chunk_rows` rows at a time; at most `max_rows` rows wait or are worked on.

    A call is taken whole or not at all; one larger than `max_rows` is taken when there is no other. Chunks of
    a cancelled call that have not begun are dropped. A chunk holds rows of one call only.
    """

    def __init__(self, name: str, *, threads: int, max_rows: int, chunk_rows: int) -> None:
        self._pool = RowPool(name, threads=threads, max_rows=sys.maxsize)
        self._name = name
        self._max_rows = max_rows
        self._chunk_rows = chunk_rows
        self._lock = threading.Lock()
        self._rows = 0

    def submit(self, rows: Sequence[ScoreRow], caller: Caller, work: Work) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit; `work` scores one chunk on a thread."""
        self._enter(len(rows))
        parts: list[Future[list[ScoreOutcome]]] = []
        for start in range(0, len(rows), self._chunk_rows):
            chunk = rows[start : start + self._chunk_rows]
            try:
                part = self._pool.submit(chunk, caller, work)
            except BaseException:  # taken away in the middle of it
                self._leave(len(rows) - start)
                for begun in parts:
                    begun.cancel()
                raise
            part.add_done_callback(partial(self._ended, len(chunk)))
            parts.append(part)
        return chained(gathered(parts), _joined)

    def close(self) -> None:
        """Finish what was submitted."""
        self._pool.close()

    def _enter(self, rows: int) -> None:
        with self._lock:
            if self._rows and self._rows + rows > self._max_rows:
                raise Overloaded(f"{self._rows} rows wait for {self._name}, the limit is {self._max_rows}")
            self._rows += rows

    def _ended(self, rows: int, _: Future[list[ScoreOutcome]]) -> None:
        self._leave(rows)

    def _leave(self, rows: int) -> None:
        with self._lock:
            self._rows -= rows


def _joined(parts: list[Future[list[ScoreOutcome]]]) -> list[ScoreOutcome]:
    """The outcomes of all chunks in order; raises the error of the first chunk that has one."""
    return [outcome for part in parts for outcome in part.result()]
