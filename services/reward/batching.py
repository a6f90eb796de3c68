"""Continuous batching in front of one model: a queue, and one thread that empties it. Knows no model, no wire.

    submit ──▶ waiting rows, a line for each client ──▶ pick: turn by turn, up to a token budget ──▶ run(batch)
      │ Overloaded: full          ▲                        cancelled and expired rows are dropped      │
      │                           └────────────── whatever came meanwhile is the next batch ◀──────────┘

There is no timer: the thread takes what is there the moment it is free, so a lone row is scored at once and
batches grow by themselves under load. Rows that are the same within a batch are run once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from services.common.errors import Expired, Overloaded, TrimtabError
from services.reward.futures import done
from services.reward.rewards.base import Caller, SourceClosed

Row = TypeVar("Row")
Result = TypeVar("Result")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """batch_tokens: of one run. queued_*: what may wait; a lone call beyond them is taken when none waits."""

    batch_tokens: int
    queued_rows: int
    queued_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What one run was: for metrics. waited_seconds: of its oldest row."""

    rows: int
    distinct: int
    tokens: int
    waited_seconds: float
    run_seconds: float


@dataclass(slots=True)
class Room:
    """Kept for rows that are on their way: they count as waiting until they are in line, or it is given up."""

    rows: int


@dataclass(slots=True)
class _Call(Generic[Result]):
    """One submit: its rows' results as they come, and the future that gets them all."""

    future: Future[list[Result]]
    caller: Caller
    results: list[Result | None]
    left: int
    arrived: float
    ended: bool = False


@dataclass(slots=True)
class _Waiting(Generic[Row, Result]):
    call: _Call[Result]
    index: int
    row: Row
    tokens: int
    key: Hashable


@dataclass(slots=True)
class _Lines(Generic[Row, Result]):
    """Waiting rows, a line for each client; the client whose turn it is stands first."""

    turns: deque[str] = field(default_factory=deque)
    lines: dict[str, deque[_Waiting[Row, Result]]] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0

    def add(self, client: str, waiting: _Waiting[Row, Result]) -> None:
        if client not in self.lines:
            self.lines[client] = deque()
            self.turns.append(client)
        self.lines[client].append(waiting)
        self.rows += 1
        self.tokens += waiting.tokens

    def purge(self) -> None:
        """Drop the rows of calls that have ended: a flood that went away keeps nobody out."""
        for client in list(self.turns):
            line = self.lines[client]
            for _ in range(len(line)):
                waiting = line.popleft()
                if waiting.call.ended:
                    self.rows -= 1
                    self.tokens -= waiting.tokens
                else:
                    line.append(waiting)
            if not line:
                del self.lines[client]
                self.turns.remove(client)

    def take(self, budget: int) -> list[_Waiting[Row, Result]]:
        """One row of each client in turn until the budget is full; at least one row. Ended calls fall out."""
        taken: list[_Waiting[Row, Result]] = []
        used = 0
        while self.turns:
            client = self.turns[0]
            line = self.lines[client]
            waiting = line[0]
            if not waiting.call.ended:
                if taken and used + waiting.tokens > budget:
                    break
                taken.append(waiting)
                used += waiting.tokens
            line.popleft()
            self.rows -= 1
            self.tokens -= waiting.tokens
            self.turns.popleft()
            if line:
                self.turns.append(client)
            else:
                del self.lines[client]
        return taken


class Batcher(Generic[Row, Result]):
    """Collects rows of many calls into runs of one model.

    `run(rows)` gives one result for each row, in order; it is called by one thread. `size(row)` is its tokens,
    `key(row)` is equal for rows that score equally. `observe` hears of every run.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Row]], Sequence[Result]],
        *,
        size: Callable[[Row], int],
        key: Callable[[Row], Hashable],
        limits: Limits,
        observe: Callable[[BatchFacts], None] = lambda _: None,
    ) -> None:
        self._name = name
        self._run = run
        self._size = size
        self._key = key
        self._limits = limits
        self._observe = observe
        self._lines: _Lines[Row, Result] = _Lines()
        self._coming = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"reward-{name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> tuple[int, int]:
        """Rows and tokens that wait, rows on their way too."""
        with self._changed:
            return self._lines.rows + self._coming, self._lines.tokens

    def keep_room(self, rows: int) -> Room:
        """Room for rows that come later. Overloaded where there is none; SourceClosed after close()."""
        with self._changed:
            self._check(rows, 0)
            self._coming += rows
            return Room(rows)

    def give_up(self, room: Room) -> None:
        """The rows are in line, or will not come. A second time does nothing."""
        with self._changed:
            self._coming -= room.rows
            room.rows = 0

    def submit(self, rows: Sequence[Row], caller: Caller, room: Room | None = None) -> Future[list[Result]]:
        """Results of all rows, in order. Overloaded where there is no room, but what was kept."""
        if not rows:
            return done([])
        future: Future[list[Result]] = Future()
        call: _Call[Result] = _Call(future, caller, [None] * len(rows), len(rows), time.monotonic())
        entries = [
            _Waiting(call, index, row, self._size(row), self._key(row)) for index, row in enumerate(rows)
        ]
        with self._changed:
            if room is not None:
                self.give_up(room)
            self._check(len(rows), sum(entry.tokens for entry in entries))
            for entry in entries:
                self._lines.add(caller.client, entry)
            self._changed.notify()
        # A caller that went away leaves its rows in line; take() drops them.
        future.add_done_callback(lambda ended: setattr(call, "ended", True) if ended.cancelled() else None)
        return future

    def close(self) -> None:
        """Run what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _check(self, rows: int, tokens: int) -> None:
        lines, limits = self._lines, self._limits
        if self._closed:
            raise SourceClosed(f"reward model {self._name} has been taken away")
        if self._full(rows, tokens):
            lines.purge()
        if self._full(rows, tokens):
            raise Overloaded(
                f"{lines.rows + self._coming} rows of {lines.tokens} tokens wait for reward model {self._name}; "
                f"the limits are {limits.queued_rows} and {limits.queued_tokens}"
            )

    def _full(self, rows: int, tokens: int) -> bool:
        lines, limits = self._lines, self._limits
        waiting = lines.rows + self._coming
        too_many = bool(waiting) and waiting + rows > limits.queued_rows
        return too_many or (bool(lines.rows) and lines.tokens + tokens > limits.queued_tokens)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if live := [entry for entry in batch if not self._expired(entry.call)]:
                self._score(live)

    def _next(self) -> list[_Waiting[Row, Result]] | None:
        with self._changed:
            while not self._lines.rows and not self._closed:
                self._changed.wait()
            return self._lines.take(self._limits.batch_tokens) if self._lines.rows else None

    def _expired(self, call: _Call[Result]) -> bool:
        if not call.ended and call.caller.deadline is not None and time.monotonic() >= call.caller.deadline:
            _end(call, error=Expired("the deadline passed before it was this call's turn"))
        return call.ended

    def _score(self, batch: Sequence[_Waiting[Row, Result]]) -> None:
        distinct: dict[Hashable, Row] = {}
        for entry in batch:
            distinct.setdefault(entry.key, entry.row)
        began = time.monotonic()
        try:
            scored = dict(zip(distinct, self._run(list(distinct.values())), strict=True))
        except TrimtabError as error:
            _fail(batch, error)
            return
        except Exception as error:
            _log.exception("a batch failed", model=self._name)
            _fail(batch, error)
            return
        ended = time.monotonic()
        for call in {id(entry.call): entry.call for entry in batch}.values():
            call.caller.trace.phase("queue", call.arrived, began)
            call.caller.trace.phase("model", began, ended, rows=len(batch))
        for entry in batch:
            _give(entry.call, entry.index, scored[entry.key])
        self._observe(
            BatchFacts(
                rows=len(batch),
                distinct=len(distinct),
                tokens=sum(self._size(row) for row in distinct.values()),
                waited_seconds=began - min(entry.call.arrived for entry in batch),
                run_seconds=ended - began,
            )
        )


def _fail(batch: Sequence[_Waiting[Row, Result]], error: Exception) -> None:
    for entry in batch:
        _end(entry.call, error=error)


def _give(call: _Call[Result], index: int, result: Result) -> None:
    if call.ended:
        return
    call.results[index] = result
    call.left -= 1
    if call.left == 0:
        _end(call)


def _end(call: _Call[Result], error: Exception | None = None) -> None:
    if call.ended:
        return
    call.ended = True
    if not call.future.set_running_or_notify_cancel():
        return
    if error is None:
        call.future.set_result([result for result in call.results if result is not None])
    else:
        call.future.set_exception(error)
