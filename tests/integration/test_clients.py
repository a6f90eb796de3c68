"""The thin clients against a real server: blocking and asyncio, retries, deadlines, streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common import errors
from services.common.server import Endpoints, serving
from services.common.spec.service import ServerSpec, ServiceSpec
from tests.integration.server.served import App, Score
from trimtab import AsyncLearnerClient, AsyncRewardClient, LearnerClient, RewardClient
from trimtab.clients.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from trimtab.reward.v1 import reward_pb2

ROW = [reward_pb2.ScoreInput(prompt="p", completion="c")]


def failing(times: int, error: Exception) -> tuple[Score, list[float]]:
    """A Score that fails so many times and then answers 1.5; and when it was called."""
    called: list[float] = []

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        called.append(time.monotonic())
        if len(called) <= times:
            raise error
        return reward_pb2.ScoreResponse(scores=[{"value": 1.5}])  # type: ignore[list-item]

    return score, called


async def both(endpoints: Endpoints, **options: Any) -> AsyncIterator[Any]:
    """The blocking client's score (on a thread) and the asyncio client's, as the same awaitable function."""
    with RewardClient(endpoints.grpc, **options) as blocking:
        yield lambda **more: asyncio.to_thread(blocking.score, ROW, **more)
    async with AsyncRewardClient(endpoints.grpc, **options) as client:
        yield lambda **more: client.score(ROW, **more)


async def test_overload_is_retried_when_the_service_says() -> None:
    """RESOURCE_EXHAUSTED with RetryInfo is tried again, not before the time that it names."""
    score, called = failing(1, errors.Overloaded("full", retry_seconds=0.3))
    async with serving(ServiceSpec(), App(score)) as endpoints:
        async for client in both(endpoints):
            called.clear()
            [answer] = await client()
            assert answer.value == 1.5
            assert len(called) == 2
            assert called[1] - called[0] >= 0.3


async def test_unavailable_is_retried_and_then_raised() -> None:
    """UNAVAILABLE is tried as often as `attempts` says, then raised with its type."""
    score, called = failing(99, errors.Unavailable("away"))
    async with serving(ServiceSpec(), App(score)) as endpoints:
        async for client in both(endpoints, attempts=3):
            called.clear()
            with pytest.raises(UnavailableError, match="away"):
                await client()
            assert len(called) == 3


async def test_a_users_mistake_is_not_retried() -> None:
    """Anything else is raised at the first attempt."""
    score, called = failing(99, errors.InvalidInput("no", {"inputs": "expected none"}))
    async with serving(ServiceSpec(), App(score)) as endpoints:
        async for client in both(endpoints):
            called.clear()
            with pytest.raises(InvalidArgumentError) as caught:
                await client()
            assert caught.value.violations == {"inputs": "expected none"}
            assert len(called) == 1


async def test_oversized_message_is_not_retried() -> None:
    """The server's size limit ends the call at once: no RetryInfo, no retry."""
    score, called = failing(0, errors.Overloaded("never"))
    spec = ServiceSpec(server=ServerSpec(max_message_mib=1))
    async with serving(spec, App(score)) as endpoints, AsyncRewardClient(endpoints.grpc) as client:
        with pytest.raises(ResourceExhaustedError):
            await client.score([reward_pb2.ScoreInput(completion="x" * (2 << 20))])
    assert called == []


async def test_every_call_has_a_deadline() -> None:
    """Without a word of the caller's the client's own deadline ends a call."""

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await asyncio.Event().wait()
        return reward_pb2.ScoreResponse()

    async with serving(ServiceSpec(), App(score)) as endpoints:
        async for client in both(endpoints, timeout_seconds=0.2):
            with pytest.raises(DeadlineExceededError):
                await client()
        async for client in both(endpoints):
            with pytest.raises(DeadlineExceededError):
                await client(timeout_seconds=0.2)


async def test_streams_end_with_typed_errors() -> None:
    """A stream gives its messages, then the typed error, blocking and asyncio alike."""
    async with serving(ServiceSpec(), App()) as endpoints:
        async with AsyncLearnerClient(endpoints.grpc) as client:
            received = 0
            with pytest.raises(FailedPreconditionError, match="run ended"):
                async for _ in client.watch_versions("run"):
                    received += 1
            assert received == 3

        def blocking() -> int:
            count = 0
            with LearnerClient(endpoints.grpc) as learner, pytest.raises(FailedPreconditionError):
                for _ in learner.watch_versions("run"):
                    count += 1
            return count

        assert await asyncio.to_thread(blocking) == 3


async def test_nobody_there() -> None:
    """A port where nobody listens is UNAVAILABLE within the deadline."""
    async with AsyncRewardClient("127.0.0.1:1", attempts=2, timeout_seconds=5) as client:
        with pytest.raises(UnavailableError):
            await client.score(ROW)
