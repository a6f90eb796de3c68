"""The reference service as one thing: model, servicer, worker, wired from its configuration.

One thread computes, for calls and for the stage alike: two passes at once would only share the processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from services.common.queue_worker import QueueWorker
from services.common.telemetry import replica_name
from services.models.loading import load_language_model
from services.reference.config import ReferenceConfig
from services.reference.logprobs import ReferenceModel
from services.reference.servicer import SERVICE_NAME, ReferenceServicer
from services.reference.worker import ReferenceProcessor
from trimtab.reference.v1 import reference_pb2_grpc


class ReferenceApplication:
    """See services/common/server.py Application."""

    name = "reference"
    keeps_what_it_loads = True

    def __init__(self, config: ReferenceConfig) -> None:
        self._config = config
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reference-model")
        self._servicer = ReferenceServicer(
            self._executor, max_sequences=config.max_sequences, together_tokens=config.together_tokens
        )
        self._worker: QueueWorker | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicer."""
        reference_pb2_grpc.add_ReferenceServiceServicer_to_server(self._servicer, server)
        return [SERVICE_NAME]

    async def start(self) -> None:
        """Load the model, warm it up, begin to work the stage."""
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._executor, self._load)
        self._servicer.attach(model)
        queue = self._config.queue
        if queue is not None:
            stage, replica = queue.stage or self.name, replica_name(self._config)
            processor = ReferenceProcessor(model, stage=stage, replica=replica)
            self._worker = QueueWorker(
                queue,
                stage,
                processor,
                self._executor,
                replica=replica,
                drain_file=self._config.server.drain_file,
            )
            self._worker.start()

    def _load(self) -> ReferenceModel:
        model = ReferenceModel(
            load_language_model(self._config.model), token_budget=self._config.token_budget
        )
        model.warm_up()
        return model

    async def drain(self) -> None:
        """Hand back what the worker holds. Calls in flight are the server's to finish."""
        if self._worker is not None:
            await self._worker.drain()

    async def wait(self) -> int:
        """Never returns by itself: a service without a queue, or between runs, goes on answering calls."""
        await asyncio.Event().wait()
        return 0
