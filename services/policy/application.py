"""The policy service as one thing: engine, servicer, worker, weight reader, wired from its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc

from services.common.drain_mark import Flag
from services.common.queue_worker import QueueWorker
from services.common.telemetry import replica_name
from services.models.pairs import Fabric
from services.models.snapshots import WeightStore
from services.policy.config import PolicyConfig, WeightSourceSpec
from services.policy.engines.choice import open_engine
from services.policy.generation import Policy
from services.policy.peers import WEIGHT_SERVICE_NAME, PeerServicer, own_address
from services.policy.servicer import SERVICE_NAME, PolicyServicer
from services.policy.weights import WeightReader
from services.policy.worker import PolicyProcessor
from trimtab.policy.v1 import policy_pb2_grpc
from trimtab.weights.v1 import weights_pb2_grpc


class PolicyApplication:
    """See services/common/server.py Application."""

    name = "policy"
    keeps_what_it_loads = True

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-model")
        self._servicer = PolicyServicer(
            self._executor, max_completions=config.max_completions, max_new_tokens=config.max_new_tokens
        )
        self._policy: Policy | None = None
        # What the engine has started beside us, from before there is an engine.
        self._opening = ExitStack()
        # Raised while the weights are too old.
        self.rest = Flag()
        fabric = config.weights.fabric if config.weights else ""
        self._fabric = Fabric.named(fabric, config.model.device)
        self._peers = PeerServicer(self._fabric)
        self._worker: QueueWorker | None = None
        self._reading: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers: weights for peers only where there are any to pass on."""
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)
        weights = self._config.weights
        if weights is None or not weights.peer_address:
            return [SERVICE_NAME]
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self._peers, server)
        return [SERVICE_NAME, WEIGHT_SERVICE_NAME]

    async def start(self) -> None:
        """Load the model, follow the learner's weights, begin to work the stage."""
        policy = await asyncio.get_running_loop().run_in_executor(self._executor, self._load)
        self._policy = policy
        self._servicer.attach(policy)
        queue, weights = self._config.queue, self._config.weights
        if weights is not None:
            reader = self._reader(policy, weights)
            self._reading = asyncio.create_task(reader.run())
        if queue is not None:
            stage, replica = queue.stage or self.name, replica_name(self._config)
            processor = PolicyProcessor(
                policy,
                stage=stage,
                replica=replica,
                max_new_tokens=self._config.max_new_tokens,
                wait_seconds=weights.wait_seconds if weights else 0,
            )
            self._worker = QueueWorker(
                queue,
                stage,
                processor,
                self._executor,
                replica=replica,
                drain_file=self._config.server.drain_file,
                rest=self.rest,
            )
            self._worker.start()

    def _reader(self, policy: Policy, weights: WeightSourceSpec) -> WeightReader:
        store, queue = WeightStore(keep=1), self._config.queue
        self._peers.attach(store)
        return WeightReader(
            policy,
            weights,
            queue.run_uid if queue else "",
            store=store,
            peer_address=own_address(weights, self._config.server.port),
            held=self._peers.announce,
            rest=self.rest,
            fabric=self._fabric,
        )

    def _load(self) -> Policy:
        swap = self._config.weights.swap if self._config.weights else "wait"
        return Policy(*open_engine(self._config, self._opening), swap=swap)

    async def drain(self) -> None:
        """Hand back what the worker holds, with the tokens it has so far."""
        if self._worker is not None:
            await self._worker.drain()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._policy is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._policy.engine.close)
        await asyncio.to_thread(self._opening.close)
        self._peers.close()

    async def wait(self) -> int:
        """Never returns by itself; raises Mismatch where the learner's weights can never be served here."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.result()
        await asyncio.Event().wait()
        return 0
