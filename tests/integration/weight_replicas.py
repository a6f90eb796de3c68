"""Policies that follow a learner and pass on what they have, for tests of deltas and of peers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import torch

from services.common.drain_mark import Flag
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models import weight_servicer
from services.models.loading import LoadedModel
from services.models.manifest import Version
from services.models.pairs import Fabric
from services.models.snapshots import WeightStore
from services.policy.config import WeightSourceSpec
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from services.policy.peers import PeerServicer
from services.policy.weights import WeightReader
from tests.integration.test_weights import WeightsOnly
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc

State = dict[str, torch.Tensor]
PLAIN = ServiceSpec()


@dataclass
class Replica:
    """A policy that follows an address and serves its peers."""

    policy: Policy
    reader: WeightReader
    address: str
    rest: Flag
    store: WeightStore
    fetched: list[str]


class Peers:
    """A replica's server with the weight service alone."""

    name = "policy"

    def __init__(self, store: WeightStore, fetched: list[str], fabric: Fabric | None = None) -> None:
        self.servicer = PeerServicer(fabric)
        self.servicer.attach(store)
        fetch = self.servicer.FetchWeights

        def noted(request: wire.FetchWeightsRequest, context: Any) -> Any:
            fetched.append(request.have.digest)
            return fetch(request, context)

        self.servicer.FetchWeights = noted  # type: ignore[method-assign]

    def register(self, server: grpc.aio.Server) -> list[str]:
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.servicer, server)
        return [weight_servicer.SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        self.servicer.close()

    async def wait(self) -> int:
        return 0


@asynccontextmanager
async def replica(
    loaded: LoadedModel, learner: str, served: ServiceSpec = PLAIN, **settings: Any
) -> AsyncIterator[Replica]:
    """One that runs until the end of the block; its policy is a model of its own. served: how it listens to peers."""
    own = LoadedModel(
        model=copy.deepcopy(loaded.model), tokenizer=loaded.tokenizer, facts=loaded.facts, folder=""
    )
    made = Policy(TransformersEngine(own), loaded.tokenizer)
    store, rest, fetched = WeightStore(keep=1), Flag(poll_seconds=0.02), list[str]()
    fabric = Fabric(settings["fabric"], torch.device("cpu")) if "fabric" in settings else None
    peers = Peers(store, fetched, fabric)
    async with serving(served, peers) as where:
        spec = WeightSourceSpec(**{"address": learner, "retry_seconds": 0.05, **settings})
        reader = WeightReader(
            made,
            spec,
            "run",
            store=store,
            peer_address=where.grpc,
            held=peers.servicer.announce,
            rest=rest,
            fabric=fabric,
        )
        task = asyncio.create_task(reader.run())
        try:
            yield Replica(made, reader, where.grpc, rest, store, fetched)
        finally:
            task.cancel()
            await asyncio.wait([task])


def nudge(state: State, *, seed: int, count: int = 20) -> None:
    """Change some elements of every tensor a little."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in state.values():
        at = torch.randint(tensor.numel(), (count,), generator=generator)
        tensor.view(-1)[at] += 2.0 ** -torch.randint(3, 9, (count,), generator=generator).to(tensor.dtype)


def publish(learner: WeightsOnly, weights: PublishedWeights, step: int, state: State) -> Version:
    version, _ = weights.publish(1, step, state)
    learner.servicer.announce()
    return version


def encodings(logs: list[Any]) -> list[str]:
    return [entry["encoding"] for entry in logs if entry["event"] == "weights arrived" and entry["tensors"]]
