"""A service behind access control, and how tests ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from services.common.access import current
from services.common.access.keys import hash_of, new_key
from services.common.access.keys_edit import added, edit
from services.common.access.keys_file import KeyEntry
from services.common.spec.service import ServiceSpec
from tests.fakes.certificates import Authority
from trimtab import AsyncRewardClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2, reward_pb2_grpc
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

REWARD = "trimtab.reward.v1.RewardService"


SERVING = health_pb2.HealthCheckResponse.SERVING


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """Answers with the caller's name; checks model and rows as a servicer does; may be held up."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        current().check(model=request.model, rows=len(request.inputs))
        self.entered.set()
        await self.release.wait()
        return reward_pb2.ScoreResponse(
            scores=[common.Score(value=1.0, model=current().name)] * len(request.inputs)
        )


class Admin(reward_pb2_grpc.RewardAdminServiceServicer):
    """Takes models away."""

    async def UnloadModel(
        self, request: reward_pb2.UnloadModelRequest, context: Any
    ) -> reward_pb2.UnloadModelResponse:
        return reward_pb2.UnloadModelResponse()


class Weights(weights_pb2_grpc.WeightServiceServicer):
    """Two versions, the second when the test says so."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def WatchVersions(
        self, request: weights_pb2.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[weights_pb2.WatchVersionsResponse]:
        yield weights_pb2.WatchVersionsResponse()
        await self.release.wait()
        yield weights_pb2.WatchVersionsResponse()


class App:
    """A service with something to score, to administer and to watch."""

    name = "reward"

    def __init__(self) -> None:
        self.reward, self.weights = Reward(), Weights()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self.reward, server)
        reward_pb2_grpc.add_RewardAdminServiceServicer_to_server(Admin(), server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.weights, server)
        return [REWARD]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """Nothing to hand back."""

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0


def build(_config: ServiceSpec) -> App:
    return App()


class Keys:
    """A keys file and the keys that it was given."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"

    def add(self, name: str = "trainer", **more: Any) -> str:
        key = new_key()
        edit(self.path, added(KeyEntry.model_validate({"name": name, "hash": hash_of(key), **more})))
        return key


def spec(keys: Keys | None = None, authority: Authority | None = None, *, mtls: bool = False) -> ServiceSpec:
    tables: dict[str, Any] = {}
    if keys is not None:
        tables["access"] = {"keys_file": keys.path}
    if authority is not None:
        pair = authority.server()
        tables["tls"] = {"certificate": pair.certificate, "private_key": pair.private_key}
        if mtls:
            tables["tls"]["client_ca"] = authority.file
    return ServiceSpec.model_validate(tables)


async def score(target: str, rows: int = 1, *, model: str = "hh", **access: Any) -> str:
    """The name under which the service knows the caller."""
    inputs = [reward_pb2.ScoreInput(completion="c")] * rows
    async with AsyncRewardClient(target, attempts=1, timeout_seconds=20, **access) as client:
        answers = await client.score(inputs, model=model)
    return answers[0].model
