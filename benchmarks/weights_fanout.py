"""What n replicas cost the learner: bytes that leave it while all of them come by a new version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks.weights_link import Proxy, WeightsAlone
from benchmarks.weights_steps import Record
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from services.learner.weights import PublishedWeights
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.models.snapshots import Snapshot, WeightStore
from services.policy.config import WeightSourceSpec
from services.policy.generation import Policy, Update
from services.policy.peers import WEIGHT_SERVICE_NAME, PeerServicer
from services.policy.weights import WeightReader
from trimtab.weights.v1 import weights_pb2_grpc


class Holding:
    """As much of a policy as its reader needs: it holds weights, and generates nothing."""

    facts = SimpleNamespace(tokenizer_fingerprint="")

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        entries = entries_of(state)
        self._start = Snapshot(Manifest(Version(0, 0, whole_digest(entries)), entries), state)
        self.version = self._start.manifest.version

    def snapshot(self) -> Snapshot:
        """What it began with."""
        return self._start

    def check_manifest(self, manifest: Manifest) -> None:
        """All are of one model here."""

    def offer(self, update: Update) -> None:
        """Taken at once."""
        self.version = update.manifest.version


class Peer:
    """A replica's WeightService; see services/common/server.py Application."""

    name = "policy"

    def __init__(self, store: WeightStore) -> None:
        self.servicer = PeerServicer()
        self.servicer.attach(store)

    def register(self, server: Any) -> list[str]:
        """Add the servicer."""
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.servicer, server)
        return [WEIGHT_SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """End the peers' streams."""
        self.servicer.close()

    async def wait(self) -> int:
        """Not by itself."""
        await asyncio.Event().wait()
        return 0


@asynccontextmanager
async def replica(learner: str, state: dict[str, torch.Tensor]) -> AsyncIterator[Holding]:
    """One that follows the learner and passes on what it holds."""
    policy, store = Holding(state), WeightStore(keep=1)
    peer = Peer(store)
    async with serving(ServiceSpec(), peer) as where:
        spec = WeightSourceSpec(address=learner, retry_seconds=0.05)
        reader = WeightReader(
            cast("Policy", policy),  # all that the reader asks of one
            spec,
            "",
            store=store,
            peer_address=where.grpc,
            held=peer.servicer.announce,
        )
        task = asyncio.create_task(reader.run())
        try:
            yield policy
        finally:
            task.cancel()
            await asyncio.wait([task])


async def egress(record: Record, replicas: int, steps: int) -> float:
    """Bytes that left the learner for each of the record's first steps, until all replicas had it: the mean."""
    states = record.states()
    weights = PublishedWeights(tokenizer_fingerprint="")
    weights.publish(1, 0, record.start)
    learner = WeightsAlone(weights)
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(serving(ServiceSpec(), learner))
        meter = Proxy(where.grpc, 0)
        policies = [
            await stack.enter_async_context(replica(meter.address, record.start)) for _ in range(replicas)
        ]
        await _until_all(policies, weights.newest().manifest.version)
        before = meter.sent
        for step in range(1, steps + 1):
            version, _ = await asyncio.to_thread(weights.publish, 1, step, next(states))
            learner.servicer.announce()
            await _until_all(policies, version)
        return (meter.sent - before) / steps


async def _until_all(policies: list[Holding], version: Version) -> None:
    async with asyncio.timeout(300):
        while any(policy.version != version for policy in policies):  # noqa: ASYNC110 - what sets no event
            await asyncio.sleep(0.01)
