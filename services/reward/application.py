"""The reward service as one thing: table of models, servicers, worker, wired from its configuration.

Every model has a thread of its own behind a queue, for calls and for the stage alike. The service may begin with no
model at all: calls then say so, and the stage is left alone until LoadModel brings the model that it needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog

from services.common.access.gate import Gate
from services.common.errors import TrimtabError
from services.common.http_guard import AsgiApp, Stage
from services.common.queue_worker import QueueWorker
from services.common.telemetry import replica_name
from services.reward.administration import Administration
from services.reward.answering import Answering, CallLimits
from services.reward.config import RewardConfig
from services.reward.rewards.opening import SourceOpener
from services.reward.scoring import RewardModels
from services.reward.servicer import ADMIN_SERVICE_NAME, SERVICE_NAME, RewardAdminServicer, RewardServicer
from services.reward.shadow import ShadowRunner
from services.reward.watching import Watch
from services.reward.worker import RewardProcessor
from trimtab.reward.v1 import reward_pb2_grpc

_log = structlog.get_logger(__name__)


class RewardApplication:
    """See services/common/server.py Application."""

    name = "reward"

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        # Waits for scores on the stage's behalf; the models have threads of their own.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-stage")
        self._watch = Watch(config.drift, config.request_log, limit_rows=config.max_queued_rows)
        self._models = RewardModels(self._watch)
        self._shadows = ShadowRunner(self._models)
        self._open = SourceOpener(config, self._watch)
        self._administration = Administration(self._models, self._open, self._start_worker)
        limits = CallLimits(rows=config.max_rows, characters=config.max_characters)
        self._answering = Answering(self._models, self._shadows, limits, observer=self._watch)
        self._worker: QueueWorker | None = None
        self._draining = False

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add both servicers."""
        scoring = RewardServicer(self._models, self._answering)
        reward_pb2_grpc.add_RewardServiceServicer_to_server(scoring, server)
        admin = RewardAdminServicer(self._administration)
        reward_pb2_grpc.add_RewardAdminServiceServicer_to_server(admin, server)
        return [SERVICE_NAME, ADMIN_SERVICE_NAME]

    def http_app(self, gate: Gate, stage: Callable[[], Stage]) -> AsgiApp:
        """The same answers over HTTP; see services/common/server.py AnswersHttp."""
        from services.reward.http.app import http_application
        from services.reward.http.calls import HttpSettings

        return http_application(
            self._models,
            self._answering,
            self._administration,
            settings=HttpSettings.of(self._config, gate),
            gate=gate,
            stage=stage,
        )

    async def start(self) -> None:
        """Load what the configuration names; begin to work the stage if its model is there."""
        # Composites last: they are made of the others.
        for entry in sorted(self._config.models, key=lambda entry: entry.made_of_others):
            source = await asyncio.to_thread(self._open, entry, entry.name)
            self._models.add(entry.name, source)
            digest = self._models.slot(entry.name).source.digest
            _log.info("reward model loaded", model=entry.name, digest=digest)
        self._start_worker()

    def _start_worker(self) -> None:
        """Work the stage from the moment that its model is there. Called after every load, which may end in a drain."""
        queue = self._config.queue
        if queue is None or self._worker is not None or self._draining:
            return
        try:
            model = self._models.slot(self._config.model_of_queue).name
        except TrimtabError as error:
            _log.info("the stage waits for its model", stage=self._config.stage, reason=str(error))
            return
        self._models.hold(model)
        replica = replica_name(self._config)
        processor = RewardProcessor(
            self._models,
            self._shadows,
            model=model,
            stage=self._config.stage,
            replica=replica,
            observer=self._watch,
        )
        self._worker = QueueWorker(
            queue,
            self._config.stage,
            processor,
            self._executor,
            replica=replica,
            drain_file=self._config.server.drain_file,
        )
        self._worker.start()

    async def drain(self) -> None:
        """Hand back what the worker holds. Calls in flight are the server's to finish."""
        self._draining = True
        if self._worker is not None:
            await self._worker.drain()

    async def finish(self) -> None:
        """Write what the request log still holds."""
        await asyncio.to_thread(self._watch.close)

    async def wait(self) -> int:
        """Never returns by itself."""
        await asyncio.Event().wait()
        return 0
