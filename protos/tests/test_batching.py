"""Many small calls collected into few: threads and tasks alike."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from trimtab import AsyncBatchingRewardClient, BatchingRewardClient
from trimtab.clients.batching import AsyncBatcher, Batcher, Limits
from trimtab.clients.errors import InvalidArgumentError, UnavailableError
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as reward

Until = Callable[[Callable[[], object]], None]


def rows(*answers: str) -> list[reward.ScoreInput]:
    return [reward.ScoreInput(completion=answer) for answer in answers]


def scores(inputs: list[reward.ScoreInput]) -> list[common.Score]:
    return [common.Score(value=float(row.completion)) for row in inputs]


def refused_if_bad(inputs: list[reward.ScoreInput]) -> None:
    if any(row.completion == "bad" for row in inputs):
        raise InvalidArgumentError(grpc.StatusCode.INVALID_ARGUMENT, "bad row")


class Held:
    """A call that waits for the test; it notes how many rows each call had."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()

    def __call__(self, inputs: list[reward.ScoreInput]) -> list[common.Score]:
        self.sizes.append(len(inputs))
        assert self.open.wait(20)
        refused_if_bad(inputs)
        return scores(inputs)


class Callers:
    """Threads that each score some rows, and what they got."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.got: dict[int, Any] = {}
        self.threads: list[threading.Thread] = []

    def add(self, number: int, *answers: str) -> None:
        def score() -> None:
            try:
                self.got[number] = [each.value for each in self.batcher.score(rows(*answers))]
            except Exception as error:
                self.got[number] = error

        self.threads.append(threading.Thread(target=score, daemon=True))
        self.threads[-1].start()

    def join(self) -> dict[int, Any]:
        for thread in self.threads:
            thread.join(20)
        return self.got


def test_what_waits_goes_together(until: Until) -> None:
    """While one call is under way twenty callers come; they make one call, and each gets its own scores."""
    held = Held()
    batcher = Batcher(held, Limits(calls_in_flight=1))
    callers = Callers(batcher)
    callers.add(0, "0")
    until(lambda: held.sizes)
    for number in range(1, 21):
        callers.add(number, str(number), str(-number))
    until(lambda: len(batcher._waiting) == 20)
    held.open.set()
    assert callers.join() == {0: [0.0]} | {n: [float(n), float(-n)] for n in range(1, 21)}
    assert held.sizes == [1, 40]


def test_calls_in_flight_and_rows_are_bounded(until: Until) -> None:
    """No more calls at once than allowed, none larger than allowed, and a caller's rows are never split."""
    held = Held()
    batcher = Batcher(held, Limits(calls_in_flight=2, max_rows=4))
    callers = Callers(batcher)
    for number in range(9):
        callers.add(number, "1", "2", "3")
    until(lambda: len(batcher._waiting) == 7)
    assert held.sizes == [3, 3]
    held.open.set()
    assert set(map(tuple, callers.join().values())) == {(1.0, 2.0, 3.0)}
    assert held.sizes == [3] * 9
    assert batcher._in_flight == 0


def test_somebodys_bad_row_is_his_own(until: Until) -> None:
    """A call that is refused over one caller's rows is made again for each alone."""
    held = Held()
    batcher = Batcher(held, Limits(calls_in_flight=1))
    callers = Callers(batcher)
    callers.add(0, "0")
    until(lambda: held.sizes)
    for number, answer in enumerate(("1", "bad", "3"), start=1):
        callers.add(number, answer)
    until(lambda: len(batcher._waiting) == 3)
    held.open.set()
    got = callers.join()
    assert isinstance(got.pop(2), InvalidArgumentError)
    assert got == {0: [0.0], 1: [1.0], 3: [3.0]}


def test_an_outage_is_everyones(until: Until) -> None:
    """Another error reaches all who shared the call, once, and the next call is made as ever."""
    failing = [True]

    def call(inputs: list[reward.ScoreInput]) -> list[common.Score]:
        if failing and len(inputs) > 1:
            failing.clear()
            raise UnavailableError(grpc.StatusCode.UNAVAILABLE, "away")
        return held(inputs)

    held = Held()
    batcher = Batcher(call, Limits(calls_in_flight=1))
    callers = Callers(batcher)
    callers.add(0, "0")
    until(lambda: held.sizes)
    callers.add(1, "1")
    callers.add(2, "2")
    until(lambda: len(batcher._waiting) == 2)
    held.open.set()
    got = callers.join()
    assert all(isinstance(got[number], UnavailableError) for number in (1, 2))
    assert batcher.score(rows("5"))[0].value == 5.0


def test_a_signal_holds_nobody_up(until: Until) -> None:
    """A waiting thread that a signal ends takes its rows along; the others are served."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    held = Held()
    batcher = Batcher(held, Limits(calls_in_flight=1))
    callers = Callers(batcher)
    callers.add(0, "0")
    until(lambda: held.sizes)

    def then_kill() -> None:
        until(lambda: len(batcher._waiting) == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Thread(target=then_kill, daemon=True).start()
        with pytest.raises(Interrupted):
            batcher.score(rows("1"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    callers.add(2, "2")
    until(lambda: len(batcher._waiting) == 1)
    held.open.set()
    assert callers.join() == {0: [0.0], 2: [2.0]}
    assert held.sizes == [1, 1]


def test_limits_are_checked() -> None:
    """A limit below 1 is refused at once, and no rows need no call."""
    with pytest.raises(ValueError, match="at least 1"):
        Limits(calls_in_flight=0)
    assert Batcher(lambda _: pytest.fail("called")).score([]) == []


class HeldTask:
    """The asyncio twin of Held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.cancelled = 0
        self.open = asyncio.Event()

    async def __call__(self, inputs: list[reward.ScoreInput]) -> list[common.Score]:
        self.sizes.append(len(inputs))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        refused_if_bad(inputs)
        return scores(inputs)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_tasks_of_one_turn_go_together() -> None:
    """Twenty tasks that score in one turn of the loop make one call; what comes meanwhile the next."""

    async def check() -> None:
        held = HeldTask()
        batcher = AsyncBatcher(held, Limits(calls_in_flight=1))
        first = [asyncio.ensure_future(batcher.score(rows(str(n)))) for n in range(20)]
        await turns()
        second = [asyncio.ensure_future(batcher.score(rows(str(n)))) for n in range(7)]
        await turns()
        assert held.sizes == [20]
        held.open.set()
        assert [each[0].value for each in await asyncio.gather(*first)] == list(range(20))
        assert [each[0].value for each in await asyncio.gather(*second)] == list(range(7))
        assert held.sizes == [20, 7]

    asyncio.run(check())


def test_tasks_suffer_for_no_other() -> None:
    """Of tasks that shared a refused call only the guilty one fails."""

    async def check() -> None:
        held = HeldTask()
        held.open.set()
        batcher = AsyncBatcher(held)
        got = await asyncio.gather(
            *(batcher.score(rows(answer)) for answer in ("1", "bad", "3")), return_exceptions=True
        )
        assert isinstance(got[1], InvalidArgumentError)
        assert [each[0].value for each in got if isinstance(each, list)] == [1.0, 3.0]

    asyncio.run(check())


def test_cancelled_tasks_are_dropped() -> None:
    """Rows of a task cancelled while it waits are not sent; a call that nobody wants any more is cancelled."""

    async def check() -> None:
        held = HeldTask()
        batcher = AsyncBatcher(held, Limits(calls_in_flight=1))
        under_way = asyncio.ensure_future(batcher.score(rows("1")))
        await turns()
        waiting = [asyncio.ensure_future(batcher.score(rows(str(n)))) for n in range(3)]
        await turns()
        waiting[1].cancel()
        under_way.cancel()
        await turns()
        assert held.cancelled == 1
        held.open.set()
        assert [each[0].value for each in await asyncio.gather(waiting[0], waiting[2])] == [0.0, 2.0]
        assert held.sizes == [1, 2]

    asyncio.run(check())


def test_the_clients_batch(fake: Any) -> None:
    """Both batching clients speak to a service: values in order, with the model's name."""
    with BatchingRewardClient(fake.target, model="hh") as client:
        assert client.values(["a", "b"], ["one", "three"]) == [3.0, 5.0]

    async def check() -> None:
        async with AsyncBatchingRewardClient(fake.target, model="hh", max_rows=8) as client:
            many = await asyncio.gather(*(client.values(["p"], ["x" * n]) for n in range(1, 21)))
            assert many == [[float(n)] for n in range(1, 21)]

    asyncio.run(check())
    assert {request.model for request in fake.requests} == {"hh"}
    assert max(len(request.inputs) for request in fake.requests) == 8
