"""Waiting calls computed together: each gets its own answer, nobody waits for company, bad ones fail alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pytest_asyncio

from services.common.errors import InvalidInput
from services.reference.coalescing import Coalescer
from services.reference.logprobs import IdPair, Logprobs

SECONDS = 30.0


class Model:
    """Answers each pair with its completion as numbers times the temperature, and notes what came together.

    The first computation waits until `go` is set; an id of 99 cannot be computed.
    """

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.seen: list[tuple[int, float]] = []

    def compute(self, pairs: Sequence[IdPair], temperature: float) -> list[Logprobs]:
        self.begun.set()
        assert self.go.wait(SECONDS)
        self.seen.append((len(pairs), temperature))
        if any(99 in completion for _, completion in pairs):
            raise InvalidInput("99 cannot be computed")
        return [(completion * temperature).astype(np.float32) for _, completion in pairs]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest_asyncio.fixture
async def calls(model: Model) -> AsyncIterator[Coalescer]:
    executor = ThreadPoolExecutor(1)
    yield Coalescer(model.compute, executor, most_tokens=20)
    model.go.set()
    executor.shutdown()


def pair(*completion: int) -> IdPair:
    return np.ones(1, np.int32), np.array(completion, np.int32)


async def begin(model: Model, calls: Coalescer) -> asyncio.Task[list[Logprobs]]:
    """A first call that the model is held in."""
    first = asyncio.create_task(calls.compute([pair(1)], 1.0))
    assert await asyncio.to_thread(model.begun.wait, SECONDS)
    return first


async def queued(calls: Coalescer, *work: tuple[list[IdPair], float]) -> list[asyncio.Task[list[Logprobs]]]:
    """Calls that wait, in this order."""
    tasks = [asyncio.create_task(calls.compute(pairs, temperature)) for pairs, temperature in work]
    await asyncio.sleep(0)
    return tasks


async def answers(*tasks: asyncio.Task[list[Logprobs]]) -> list[list[list[float]]]:
    async with asyncio.timeout(SECONDS):
        return [[values.tolist() for values in await task] for task in tasks]


async def test_a_single_call_goes_at_once(model: Model, calls: Coalescer) -> None:
    """Nothing is waited for; an idle queue works again after it."""
    model.go.set()
    for _ in range(2):
        task = asyncio.create_task(calls.compute([pair(3, 4), pair()], 0.5))
        assert await answers(task) == [[[1.5, 2.0], []]]
    assert model.seen == [(2, 0.5), (2, 0.5)]


async def test_what_waits_is_computed_together(model: Model, calls: Coalescer) -> None:
    """Three calls behind the first are one computation, and each gets its own numbers in order."""
    first = await begin(model, calls)
    tasks = await queued(calls, ([pair(2), pair(3)], 1.0), ([pair(4)], 1.0), ([pair(5), pair(6, 7)], 1.0))
    model.go.set()
    assert await answers(first, *tasks) == [[[1.0]], [[2.0], [3.0]], [[4.0]], [[5.0], [6.0, 7.0]]]
    assert model.seen == [(1, 1.0), (5, 1.0)]


async def test_up_to_the_bound_and_of_one_temperature(model: Model, calls: Coalescer) -> None:
    """12 + 12 tokens are over 20, so the second waits; 6 more fit beside the first; another temperature is apart."""
    first = await begin(model, calls)
    long, short = pair(*range(11)), pair(*range(5))
    tasks = await queued(
        calls, ([long], 1.0), ([long], 1.0), ([short], 2.0), ([short], 1.0), ([long] * 3, 1.0)
    )
    model.go.set()
    await answers(first, *tasks)
    assert model.seen == [(1, 1.0), (2, 1.0), (1, 1.0), (1, 2.0), (3, 1.0)]


async def test_a_call_that_cannot_be_computed_fails_alone(model: Model, calls: Coalescer) -> None:
    """Its company is computed again without it."""
    first = await begin(model, calls)
    good, bad, other = await queued(calls, ([pair(2)], 1.0), ([pair(99)], 1.0), ([pair(3)], 1.0))
    model.go.set()
    assert await answers(first, good, other) == [[[1.0]], [[2.0]], [[3.0]]]
    with pytest.raises(InvalidInput, match="99 cannot be computed"):
        await bad


async def test_who_went_away_is_not_computed(model: Model, calls: Coalescer) -> None:
    """A caller cancelled while it waits costs nothing; one cancelled in the middle disturbs nobody."""
    first = await begin(model, calls)
    one, gone = await queued(calls, ([pair(2)], 1.0), ([pair(3)] * 3, 1.0))
    gone.cancel()
    first.cancel()
    await asyncio.wait([gone, first])
    model.go.set()
    assert await answers(one) == [[[2.0]]]
    assert model.seen == [(1, 1.0), (1, 1.0)]


async def test_ended_from_outside_nobody_waits_for_ever(model: Model, calls: Coalescer) -> None:
    """When the service's loop ends, callers end with it."""
    first = await begin(model, calls)
    [waiting] = await queued(calls, ([pair(2)], 1.0))
    assert calls._working is not None
    calls._working.cancel()
    done, _ = await asyncio.wait([first, waiting], timeout=SECONDS)
    assert done == {first, waiting}
    assert first.cancelled()
    assert waiting.cancelled()
