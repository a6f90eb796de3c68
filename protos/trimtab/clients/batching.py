"""Many small calls collected into few: whatever arrives while a call is under way forms the next one.

     caller ──┐                            ┌── calls in flight (bounded) ──▶ Score
     caller ──┼──▶ is a place free? ───────┤
     caller ──┘                            └── waiting, in order; taken as one when a call ends

No timer: a lone caller is sent at once, and batches grow with the load by themselves, as in the service.
Knows nothing of rows but their size, and no retries: it is handed the function that makes one call.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from trimtab.clients.errors import InvalidArgumentError, ResourceExhaustedError
from trimtab.clients.reward import AsyncRewardClient, RewardClient, text_inputs, values_or_raise
from trimtab.clients.rows import portions
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire

DEFAULT_CALLS_IN_FLIGHT = 4
DEFAULT_MAX_ROWS = 1024
DEFAULT_MAX_BYTES = 16 << 20

Inputs = Sequence[wire.ScoreInput]
Scores = list[common.Score]
# What one caller's rows can be the cause of: its neighbours in the call must not suffer for it.
_OF_THE_ROWS = (InvalidArgumentError, ResourceExhaustedError)


class _Alone(Exception):
    """Tells a caller to make its call alone: the one that it shared failed over somebody's rows."""


@dataclass(frozen=True)
class Limits:
    """Of the calls that are made: how many at once, and how much in one. One caller's rows are never split."""

    calls_in_flight: int = DEFAULT_CALLS_IN_FLIGHT
    max_rows: int = DEFAULT_MAX_ROWS
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        if min(self.calls_in_flight, self.max_rows, self.max_bytes) < 1:
            raise ValueError("calls_in_flight, max_rows and max_bytes must be at least 1")


@dataclass(eq=False)
class _Waiting:
    inputs: Inputs

    @property
    def size(self) -> tuple[int, int]:
        """Rows and bytes."""
        return len(self.inputs), sum(row.ByteSize() for row in self.inputs)


_Kind = TypeVar("_Kind", bound=_Waiting)


def _take(waiting: deque[_Kind], limits: Limits) -> list[_Kind]:
    """Remove the oldest callers, as many as fit into one call."""
    fitting = portions(waiting, lambda each: each.size, max_rows=limits.max_rows, max_bytes=limits.max_bytes)
    batch = next(fitting)
    for _ in batch:
        waiting.popleft()
    return batch


def _rows_of(batch: Sequence[_Waiting]) -> list[wire.ScoreInput]:
    return [row for each in batch for row in each.inputs]


def _shares(batch: Sequence[_Waiting], scores: Scores) -> list[Scores]:
    """Every caller's part of the answer."""
    shares, at = [], 0
    for each in batch:
        shares.append(scores[at : at + len(each.inputs)])
        at += len(each.inputs)
    return shares


@dataclass(eq=False)
class _Thread(_Waiting):
    """A waiting thread, and what became of its rows."""

    woken: threading.Event = field(default_factory=threading.Event)
    scores: Scores | None = None
    error: BaseException | None = None
    # Set when this thread is to make the next call, for all of these.
    leads: list[_Thread] | None = None


class Batcher:
    """Collects the calls of threads. It has no thread of its own: the first that waits makes the next call.

    call: makes one call, one score for each row; run by up to `calls_in_flight` threads at once. Its error
    reaches every caller that shared the call, except one that somebody's rows may have caused: then each
    makes its call alone.
    """

    def __init__(self, call: Callable[[list[wire.ScoreInput]], Scores], limits: Limits | None = None) -> None:
        self._call = call
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._waiting: deque[_Thread] = deque()
        self._in_flight = 0

    def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order. Raises what the call raises."""
        if not inputs:
            return []
        mine = _Thread(inputs)
        with self._lock:
            if self._in_flight < self._limits.calls_in_flight:
                self._in_flight += 1
                mine.leads = [mine]
            else:
                self._waiting.append(mine)
        if mine.leads is None:
            self._wait(mine)
        if mine.leads is not None:
            self._lead(mine.leads)
        if isinstance(mine.error, _Alone):
            return self._call(list(inputs))
        if mine.error is not None:
            raise mine.error
        return mine.scores or []

    def _wait(self, mine: _Thread) -> None:
        try:
            mine.woken.wait()
        except BaseException:
            # The exception of a signal: whoever relied on this thread must not wait for ever.
            with self._lock:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                elif mine.leads is not None:
                    self._hand_over(mine.leads[1:])
            raise

    def _lead(self, batch: list[_Thread]) -> None:
        """Make one call for a batch and tell everyone in it; then another batch may go."""
        try:
            shares = _shares(batch, self._call(_rows_of(batch)))
            for each, share in zip(batch, shares, strict=True):
                each.scores = share
        except Exception as error:
            alone = len(batch) > 1 and isinstance(error, _OF_THE_ROWS)
            for each in batch:
                each.error = _Alone() if alone else error
        except BaseException:
            for each in batch:
                each.error = RuntimeError("the thread that made the call was interrupted")
            raise
        finally:
            with self._lock:
                self._hand_over([])
            for each in batch[1:]:
                each.woken.set()

    def _hand_over(self, batch: list[_Thread]) -> None:
        """Let a batch, or else what waits, be called for by its first thread; or give the place back.

        Called under the lock.
        """
        if not batch and self._waiting:
            batch = _take(self._waiting, self._limits)
        if batch:
            batch[0].leads = batch
            batch[0].woken.set()
        else:
            self._in_flight -= 1


@dataclass(eq=False)
class _Task(_Waiting):
    """A waiting task."""

    future: asyncio.Future[Scores]


class AsyncBatcher:
    """The same for the tasks of one event loop. What comes in one turn of the loop goes in one call.

    A call is cancelled when everyone who shared it was.
    """

    def __init__(
        self,
        call: Callable[[list[wire.ScoreInput]], Awaitable[Scores]],
        limits: Limits | None = None,
    ) -> None:
        self._call = call
        self._limits = limits or Limits()
        self._waiting: deque[_Task] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order. Raises what the call raises."""
        if not inputs:
            return []
        loop = asyncio.get_running_loop()
        mine = _Task(inputs, loop.create_future())
        self._waiting.append(mine)
        loop.call_soon(self._start)
        try:
            return await mine.future
        except _Alone:
            return await self._call(list(inputs))

    def _start(self) -> None:
        """Make calls of what waits, as long as there are places."""
        while self._waiting and len(self._running) < self._limits.calls_in_flight:
            batch = [each for each in _take(self._waiting, self._limits) if not each.future.done()]
            if not batch:
                continue
            running = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(running)
            running.add_done_callback(self._ended)
            for each in batch:
                each.future.add_done_callback(partial(_cancel_unwanted, batch, running))

    async def _run(self, batch: list[_Task]) -> None:
        try:
            shares = _shares(batch, await self._call(_rows_of(batch)))
        except Exception as error:
            alone = len(batch) > 1 and isinstance(error, _OF_THE_ROWS)
            for each in batch:
                if not each.future.done():
                    each.future.set_exception(_Alone() if alone else error)
        else:
            for each, share in zip(batch, shares, strict=True):
                if not each.future.done():
                    each.future.set_result(share)
        finally:
            for each in batch:
                each.future.cancel()  # only after a cancelled call is anything left to cancel

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._start()


def _cancel_unwanted(batch: list[_Task], call: asyncio.Task[None], _: object) -> None:
    if all(each.future.cancelled() for each in batch):
        call.cancel()


class BatchingRewardClient:
    """RewardClient.score for many threads that have a row or a few each. `options` are RewardClient's."""

    def __init__(
        self,
        target: Any,
        *,
        model: str = "",
        calls_in_flight: int = DEFAULT_CALLS_IN_FLIGHT,
        max_rows: int = DEFAULT_MAX_ROWS,
        **options: Any,
    ) -> None:
        self._client = RewardClient(target, **options)
        self._batcher = Batcher(
            lambda rows: self._client.score(rows, model=model),
            Limits(calls_in_flight=calls_in_flight, max_rows=max_rows),
        )

    def __enter__(self) -> BatchingRewardClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order; a row that cannot be scored has an error and no value."""
        return self._batcher.score(inputs)

    def values(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        columns: Sequence[Mapping[str, str]] | None = None,
    ) -> list[float]:
        """Scores of plain text as numbers. RowError where a row has none."""
        return values_or_raise(self.score(text_inputs(prompts, completions, columns)))


class AsyncBatchingRewardClient:
    """AsyncRewardClient.score for many tasks of one loop. `options` are AsyncRewardClient's."""

    def __init__(
        self,
        target: Any,
        *,
        model: str = "",
        calls_in_flight: int = DEFAULT_CALLS_IN_FLIGHT,
        max_rows: int = DEFAULT_MAX_ROWS,
        **options: Any,
    ) -> None:
        self._client = AsyncRewardClient(target, **options)
        self._batcher = AsyncBatcher(
            lambda rows: self._client.score(rows, model=model),
            Limits(calls_in_flight=calls_in_flight, max_rows=max_rows),
        )

    async def __aenter__(self) -> AsyncBatchingRewardClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def score(self, inputs: Inputs) -> Scores:
        """One score for each input, in order; a row that cannot be scored has an error and no value."""
        return await self._batcher.score(inputs)

    async def values(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        columns: Sequence[Mapping[str, str]] | None = None,
    ) -> list[float]:
        """Scores of plain text as numbers. RowError where a row has none."""
        return values_or_raise(await self.score(text_inputs(prompts, completions, columns)))
