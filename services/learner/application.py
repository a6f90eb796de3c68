"""The learner service as one thing: model, trainer, run, servicers, wired from its configuration."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from services.common.errors import ConfigError, TrimtabError, Unavailable
from services.common.stages.redis_stages import RedisStages
from services.common.stages.tls_files import TlsFiles
from services.common.telemetry import replica_name
from services.learner.config import LearnerConfig
from services.learner.intake import Intake
from services.learner.offline.batches import NoQueue
from services.learner.offline.loading import offline_learner
from services.learner.pretraining import load_texts
from services.learner.prompts import Prompt, load_prompts
from services.learner.publishing import Alone, Together
from services.learner.run import Learner, Run, RunQueue, Source
from services.learner.servicer import SERVICE_NAME, LearnerServicer
from services.learner.training import Trainer
from services.learner.weight_servicer import SERVICE_NAME as WEIGHT_SERVICE_NAME
from services.learner.weight_servicer import WeightServicer
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel, load_language_model
from services.models.pairs import Fabric
from services.models.tensor_folder import TensorFolder
from trimtab.learner.v1 import learner_pb2_grpc
from trimtab.weights.v1 import weights_pb2_grpc

if TYPE_CHECKING:
    from services.learner.distributed.commands import Leader
    from services.learner.distributed.group import Place

_LEAVE_SECONDS = 2.0
_LAST_SHARE = 0.6
"""Of the time that a drain has: for a last checkpoint. The rest is for letting go."""
_log = structlog.get_logger(__name__)


class LearnerApplication:
    """See services/common/server.py Application."""

    name = "learner"
    # Status is worth having while the model loads.
    answers_while_starting = True
    keeps_what_it_loads = True

    def __init__(self, config: LearnerConfig, place: Place | None = None) -> None:
        """place: of the first of several processes."""
        if config.queue is None and not config.run.offline:
            raise ConfigError("learner: [queue] is missing: a learner lives on the rollouts that it admits")
        self._config, self._place = config, place
        self._leader: Leader | None = None
        self._together: Together = Alone()
        self._run_uid = config.queue.run_uid if config.queue else config.run.name
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner-model")
        self._servicer = LearnerServicer(self._run_uid, config.run.steps)
        fabric = Fabric.named(config.weights.fabric, config.run.model.device)
        self._weight_servicer = WeightServicer(fabric)
        self._weights: PublishedWeights | None = None
        self._queue: RedisStages | None = None
        self._going: Run | None = None
        self._training: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers."""
        learner_pb2_grpc.add_LearnerServiceServicer_to_server(self._servicer, server)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self._weight_servicer, server)
        return [SERVICE_NAME, WEIGHT_SERVICE_NAME]

    async def start(self) -> None:
        """Load model and prompts, then train in the background."""
        loop = asyncio.get_running_loop()
        self._going = await (self._offline(loop) if self._config.run.offline else self._online(loop))
        self._servicer.attach(self._going)
        self._training = asyncio.create_task(self._going.train(), name="training")
        self._started.set()

    async def _online(self, loop: asyncio.AbstractEventLoop) -> Run:
        loaded, trainer, prompts = await loop.run_in_executor(self._executor, self._load)
        spec = self._config.queue
        assert spec is not None  # noqa: S101 - __init__ has looked
        self._queue = RedisStages(
            spec.url.get_secret_value(),
            spec.run_uid,
            consumer=replica_name(self._config),
            stages=self._config.run.rollout.slip,
            lease_seconds=spec.lease_seconds,
            attempt_limit=spec.attempt_limit,
            tls=TlsFiles.of(spec),
        )
        intake = Intake(
            self._config.run,
            run_uid=spec.run_uid,
            prompts=prompts,
            queue=self._queue,
            watch_seconds=self._config.watch_seconds,
            vocabulary_size=loaded.facts.vocabulary_size,
        )
        return self._run(loaded, trainer, intake, self._queue)

    async def _offline(self, loop: asyncio.AbstractEventLoop) -> Run:
        loaded, trainer, batches = await loop.run_in_executor(
            self._executor, offline_learner, self._config.run
        )
        return self._run(loaded, trainer, batches, NoQueue())

    def _run(self, loaded: LoadedModel, trainer: Learner, intake: Source, queue: RunQueue) -> Run:
        # Several processes keep a part each.
        shared = self._config.weights.folder if self._leader is None else ""
        weights = PublishedWeights(
            tokenizer_fingerprint=loaded.facts.tokenizer_fingerprint,
            deltas=self._config.deltas,
            folder=TensorFolder(Path(shared)) if shared else None,
            together=self._together,
        )
        self._weights = weights
        run = Run(
            self._config,
            loaded=loaded,
            trainer=trainer,
            intake=intake,
            queue=queue,
            weights=weights,
            executor=self._executor,
            announce=self._weight_servicer.announce,
            files=self._leader,
        )
        self._weight_servicer.attach(weights, run.refuse)
        return run

    def _load(self) -> tuple[LoadedModel, Learner, list[Prompt]]:
        spec = self._config.run
        loaded, trainer = self._load_trainer()
        prompts = load_prompts(
            spec.data,
            loaded.tokenizer,
            context_length=loaded.facts.context_length,
            max_new_tokens=spec.sampling.max_new_tokens,
        )
        return loaded, trainer, prompts

    def _load_trainer(self) -> tuple[LoadedModel, Learner]:
        spec = self._config.run
        if self._place is None:
            loaded = load_language_model(spec.model)
            return loaded, Trainer(loaded, spec, load_texts(spec.data, loaded.tokenizer))
        from services.learner.distributed.commands import Leader  # torch.distributed: 1 s
        from services.learner.distributed.joining import join, load_part
        from services.learner.distributed.publishing import InParts

        group = join(self._config, self._place)
        with group.unbroken():
            part = load_part(spec, group)
        self._leader = Leader(part.trainer, group, part.serving)
        self._together = InParts(group, self._leader.gathered().sizes(), address="")
        return part.loaded, self._leader

    async def drain(self) -> None:
        """A last checkpoint if the step ends in time; else what came after the one before is trained again."""
        if self._training is not None and not self._training.done():
            await self._write_last()
            self._training.cancel()
            await asyncio.wait([self._training])
        await self._let_go()
        self._weight_servicer.close()
        if self._weights is not None:
            self._weights.close()
        if self._queue is not None:
            await self._queue.close()

    async def _write_last(self) -> None:
        assert self._going is not None  # noqa: S101 - there is training
        if self._going.step == 0:
            return
        self._going.pause()  # no step begins after it
        seconds = self._config.server.drain_seconds * _LAST_SHARE
        try:
            path = await asyncio.wait_for(self._going.checkpoint(), seconds)
        except TimeoutError:
            _log.warning("no last checkpoint in time", waited_seconds=seconds)
        except TrimtabError as error:
            _log.warning("ends without a checkpoint", error=str(error))
        else:
            _log.info("ends after a checkpoint", checkpoint=path, step=self._going.step)

    async def _let_go(self) -> None:
        """Tell the other processes that it is over, unless a step is going on: then its end tells them."""
        if self._leader is None:
            return
        leaving = asyncio.get_running_loop().run_in_executor(self._executor, self._leader.leave)
        with contextlib.suppress(TimeoutError, Unavailable):
            await asyncio.wait_for(leaving, _LEAVE_SECONDS)

    def cut_off(self) -> int:
        """See services/common/server.py MayBeCutOff: a run that is carried through ends well."""
        training = self._training
        if training is None or not training.done() or training.cancelled():
            return self._config.cut_off_status
        return 0 if training.exception() is None else 1

    async def wait(self) -> int:
        """Ends when the run does: 0 when it was carried through; raises what ended it otherwise."""
        await self._started.wait()
        assert self._training is not None  # noqa: S101 - start() made it before it set the event
        await self._training
        await asyncio.sleep(self._config.linger_seconds)
        return 0
