"""A service with two small servicers, and how tests ask it."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import errors
from services.common.server import Endpoints
from trimtab.reward.v1 import reward_pb2, reward_pb2_grpc
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

REWARD = "trimtab.reward.v1.RewardService"


WEIGHTS = "trimtab.weights.v1.WeightService"


Score = Callable[[reward_pb2.ScoreRequest], Awaitable[reward_pb2.ScoreResponse]]


DETAIL_TYPES = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """A real servicer whose Score is given by the test."""

    def __init__(self, score: Score) -> None:
        self._score = score

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        return await self._score(request)

    async def ListModels(
        self, request: reward_pb2.ListModelsRequest, context: Any
    ) -> reward_pb2.ListModelsResponse:
        return reward_pb2.ListModelsResponse()


class Weights(weights_pb2_grpc.WeightServiceServicer):
    """A streaming servicer: three versions, then an error."""

    async def WatchVersions(
        self, request: weights_pb2.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[weights_pb2.WatchVersionsResponse]:
        for _ in range(3):
            yield weights_pb2.WatchVersionsResponse()
        raise errors.Mismatch("run ended")


class App:
    """The smallest application: two servicers and a record of what was asked of it."""

    name = "reward"

    def __init__(self, score: Score | None = None) -> None:
        self._score = score or _empty
        self.drained = False
        self.release = asyncio.Event()
        self.release.set()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(Reward(self._score), server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(Weights(), server)
        return [REWARD, WEIGHTS]

    async def start(self) -> None:
        await self.release.wait()

    async def drain(self) -> None:
        self.drained = True

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0


async def _empty(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse()


def raising(error: Exception) -> Score:
    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        raise error

    return score


async def call(endpoints: Endpoints, request: reward_pb2.ScoreRequest | None = None, **options: Any) -> Any:
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        return await stub.Score(request or reward_pb2.ScoreRequest(), **{"timeout": 10, **options})


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailing = error.trailing_metadata()
    assert trailing is not None
    data = trailing["grpc-status-details-bin"]
    assert isinstance(data, bytes)
    status = status_pb2.Status.FromString(data)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found = {}
    for packed in status.details:
        for kind in DETAIL_TYPES:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(packed.value)
    return found


async def health_of(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return int(answer.status)


async def until_health(address: str, wanted: int) -> None:
    """Return when health says so; fails after 30 seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=30):
            if answer.status == wanted:
                return
    raise AssertionError("health ended")


def page_of(endpoints: Endpoints) -> str:
    with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=10) as page:
        return str(page.read().decode())


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[3]
    return {**os.environ, "PYTHONPATH": str(root)}
