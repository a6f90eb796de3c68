"""A stage worker from a [queue] table, with the connection it owns. Knows no service's processor.

start ──▶ works (rests while drain_file says so) until ──▶ drain: hand back, leave, close
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path

from services.common.drain_mark import AnyMark, DrainMark, Mark
from services.common.spec.service import QueueSpec
from services.common.stages.redis_stages import RedisStages
from services.common.stages.tls_files import TlsFiles
from services.common.worker import StageProcessor, StageWorker


class QueueWorker:
    """Works one stage of one run. Made inside the event loop that it runs in."""

    def __init__(
        self,
        spec: QueueSpec,
        stage: str,
        processor: StageProcessor,
        executor: Executor,
        *,
        replica: str,
        drain_file: Path | None = None,
        rest: Mark | None = None,
    ) -> None:
        self.stage = stage
        self._queue = RedisStages(
            spec.url.get_secret_value(),
            spec.run_uid,
            consumer=replica,
            lease_seconds=spec.lease_seconds,
            attempt_limit=spec.attempt_limit,
            tls=TlsFiles.of(spec),
        )
        self._worker = StageWorker(
            self._queue,
            stage,
            processor,
            executor,
            batch_groups=spec.batch_groups,
            renew_seconds=spec.renew_seconds,
            attempt_limit=spec.attempt_limit,
            replica=replica,
            mark=DrainMark(drain_file) if rest is None else AnyMark(DrainMark(drain_file), rest),
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; once."""
        if self._task is None:
            self._task = asyncio.create_task(self._worker.run(), name=f"worker {self.stage}")

    async def wait(self) -> None:
        """Return when the worker has ended; raise what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def drain(self) -> None:
        """Stop reading, hand back what is held, leave the stage, close the connection."""
        await self._worker.drain()
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._queue.close()
