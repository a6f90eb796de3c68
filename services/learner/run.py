"""The run: what the learner does from its first admission to its last checkpoint.

           ┌────────────── in flight < (max_staleness + 1) * batch ──────────────┐
           ▼                                                                     │
    admit prompts ─▶ wait for a batch (lowest numbers first) ─▶ update ─▶ publish ─▶ checkpoint ─▶ acknowledge
                       │  every few seconds: ledger against the queue              (every few steps, or MiB)
                       └─ stale, failed, lost: counted, admitted again

It waits in exactly two places: for a batch (intake.py), and at the boundary between two steps, where it holds
while paused and writes the checkpoints that are asked for. It knows nothing of how engines sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog
import torch
from safetensors.torch import save_file

from services.common.errors import Corrupted, TrimtabError, Unavailable
from services.common.spec.metric_logs import LoggingSpec
from services.learner.adapters import Adapter
from services.learner.checkpoints import (
    Checkpoints,
    Files,
    WholeFiles,
    storage_errors,
    write_folder,
    write_model,
)
from services.learner.config import LearnerConfig
from services.learner.epochs import last_epoch, note_epoch
from services.learner.intake import Intake
from services.learner.kept_rollouts import check_can_keep, keep_rollouts, rollout_file
from services.learner.ledger import Ledger
from services.learner.logs.base import RunIdentity
from services.learner.logs.registry import LOGS
from services.learner.logs.sink import CLOSE_SECONDS, DRAIN_SECONDS, Sinks
from services.learner.metrics import append_metrics, keep_metrics, metrics_rows, timings
from services.learner.offline.batches import OfflineBatches
from services.learner.watch.watch import Watch
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel, frozen_names
from services.models.manifest import Version, entries_of, policy_digest, whole_digest
from services.models.master_weights import MasterWeights

# What has been used stays on the queue server until a checkpoint covers it: beyond these bytes one is written early,
# but not after each step, where one step alone has so many or a queue that is away takes no acknowledgement.
UNACKNOWLEDGED_BYTES = 256 * 2**20
EARLY_STEPS = 4

Phase = Literal["loading", "training", "paused", "finished", "failed"]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RunState:
    """What GetRunStatus tells."""

    phase: Phase = "loading"
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """Of the run itself; those about rollouts are the intake's."""
    last_checkpoint: str = ""
    error: str = ""
    version: Version | None = None


class Learner(Protocol):
    """What learns: the Trainer of rollouts, or one of a file's rows. Called in the model's thread alone."""

    @property
    def step_number(self) -> int:
        """Steps done."""
        ...

    @property
    def optimiser(self) -> MasterWeights:
        """With the weights that are trained."""
        ...

    @property
    def adapter(self) -> Adapter | None:
        """What is trained in the model's place."""
        ...

    def step(self, samples: Any) -> dict[str, float]:
        """Learn from a batch; metrics."""
        ...

    def serving_weights(self) -> Mapping[str, torch.Tensor]:
        """What is published. Gone through once, in its order."""
        ...

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """What is written beside the model, by the file's name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        ...


class RunQueue(Protocol):
    """What the run itself asks of its queue; everything else is the intake's."""

    async def start_epoch(self, *, at_least: int) -> int:
        """Begin."""
        ...

    async def scan(self) -> Any:
        """Raises LostOwnership where another learner has begun."""
        ...

    async def leave(self) -> None:
        """The run is over."""
        ...


Source = Intake | OfflineBatches


class Run:
    """One learner's run. Everything runs on one event loop but what `executor` is given: the model's thread."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        loaded: LoadedModel,
        trainer: Learner,
        intake: Source,
        queue: RunQueue,
        weights: PublishedWeights,
        executor: Executor,
        announce: Callable[[], None],
        files: Files | None = None,
    ) -> None:
        self.config, self.spec = config, config.run
        self.state = RunState()
        self.trainer = trainer
        self.intake = intake
        self._loaded, self._queue = loaded, queue
        self._weights, self._executor, self._announce = weights, executor, announce
        self._files = files or WholeFiles()
        self._checkpoints = Checkpoints(
            config.out / "checkpoints", keep=self.spec.checkpoint.keep, files=self._files
        )
        self._checkpointed_step: int | None = None
        self._metrics_file = config.out / "metrics.jsonl"
        self._watch = Watch(self.spec, config.out)
        self._logs = Sinks({}, self._identity(), LoggingSpec(), 0)
        self._epoch = 0
        self._paused, self._stopping = False, False
        self._refused: TrimtabError | None = None
        self._asked: list[asyncio.Future[str]] = []
        self._nudged = asyncio.Event()
        self._frozen = trainer.adapter.fixed() if trainer.adapter else frozen_names(loaded.model)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.step_number

    @property
    def ledger(self) -> Ledger:
        """What became of every group."""
        return self.intake.ledger

    @property
    def awaiting_checkpoint(self) -> int:
        """Entries used but not acknowledged yet."""
        return len(self.intake.unacknowledged)

    @property
    def warnings(self) -> list[str]:
        """What a person should know now."""
        return [*self.state.warnings, *self.intake.warnings, *self._watch.warnings, *self._logs.warnings]

    # ------------------------------------------------------------ the flow

    async def train(self) -> None:
        """From the last checkpoint (or the beginning) to the last step."""
        patience = DRAIN_SECONDS  # where it ends in the middle, somebody waits for the process to end
        try:
            await self._train()
            patience = CLOSE_SECONDS
        except Exception as error:
            self.state.phase, self.state.error = "failed", str(error)
            if isinstance(error, TrimtabError):
                self._answer(error)
            raise
        finally:
            self._answer(Unavailable("the run has ended without this checkpoint"))
            await asyncio.to_thread(self._logs.close, patience)

    async def _train(self) -> None:
        await self._begin()
        if self.step >= self.spec.steps:
            told = f"nothing to train: the last checkpoint is at step {self.step} of {self.spec.steps}"
            self.state.warnings = [told]
            _log.warning(told)
        while self.step < self.spec.steps and not self._stopping:
            await self._hold()
            if self._stopping:  # while it was held, and a whole batch may wait
                break
            started = time.perf_counter()
            batch = await self.intake.batch(self._interrupted)
            if batch is None:
                continue
            await self._train_on(batch, started)
            if self._checkpoint_is_due():
                await self._checkpoint()
        await self._finish()

    def _checkpoint_is_due(self) -> bool:
        full = self.intake.unacknowledged_bytes >= UNACKNOWLEDGED_BYTES
        early = full and self.step - (self._checkpointed_step or 0) >= EARLY_STEPS
        return early or self.step % self.spec.checkpoint.every_steps == 0

    def pause(self) -> None:
        """Admit nothing more and hold at the next step boundary."""
        self._paused = True
        self._nudged.set()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._nudged.set()

    def stop(self) -> None:
        """End after a last checkpoint."""
        self._stopping = True
        self._nudged.set()

    def refuse(self, error: TrimtabError) -> None:
        """End with this error at the next boundary: somebody serves what was never published."""
        self._refused = error
        self._nudged.set()

    async def checkpoint(self) -> str:
        """Ask for a checkpoint at the next step boundary; its path. Raises Unavailable where none is written."""
        if self.state.phase == "finished":
            return self.state.last_checkpoint
        if self.state.phase not in ("training", "paused"):
            raise Unavailable(f"the run is {self.state.phase}: there is nothing to write")
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._nudged.set()
        return await asked

    def _interrupted(self) -> bool:
        return self._stopping or self._paused or bool(self._asked) or self._refused is not None

    async def _hold(self) -> None:
        """At the boundary: write what was asked for; stay while paused."""
        while True:
            self._nudged.clear()
            if self._refused is not None:
                raise self._refused
            if self._asked:
                await self._checkpoint()
            if self._stopping or not self._paused:
                break
            self.state.phase = "paused"
            await self._nudged.wait()
        self.state.phase = "training"

    def _answer(self, answer: str | Exception) -> None:
        """To all who asked for a checkpoint and still wait."""
        asked, self._asked = self._asked, []
        for one in asked:
            if one.done():  # the caller has gone away
                continue
            if isinstance(answer, Exception):
                one.set_exception(answer)
            else:
                one.set_result(answer)

    async def _begin(self) -> None:
        """Begin an epoch, take up the last checkpoint, publish, and settle what the queue still holds."""
        if self.spec.rollout.keep:
            check_can_keep()
        self._epoch = await self._begin_epoch()
        # Only now: until then the learner before this one may still have written.
        latest = self._checkpoints.latest()
        if latest is not None:
            trainer, state = await self._in_thread(self._checkpoints.read, latest)
            await self._in_thread(self.trainer.load_state_dict, trainer)
            self.intake.restore(state)
            self.state.last_checkpoint, self._checkpointed_step = str(latest), self.step
            _log.info("resumed", checkpoint=str(latest), step=self.step)
        await self._in_thread(keep_metrics, self._metrics_file, self.step)
        await self._in_thread(self._watch.resume, metrics_rows(self._metrics_file))
        self._logs = Sinks(LOGS, self._identity(), self.spec.logging, self.step)
        _log.info("training begins", epoch=self._epoch, step=self.step)
        await self._publish()
        await self.intake.settle(resumed=latest is not None)

    async def _begin_epoch(self) -> int:
        """Newer than all that were, wherever it is noted: in the queue, here, in the last checkpoint."""
        latest = self._checkpoints.latest()
        used = 0 if latest is None else await self._in_thread(self._checkpoints.epoch_of, latest)
        noted = await self._in_thread(last_epoch, self.config.out)
        epoch = await self._queue.start_epoch(at_least=max(used, noted))
        await self._in_thread(note_epoch, self.config.out, epoch)
        return epoch

    def _identity(self) -> RunIdentity:
        """The run's uid survives a resume. Without a queue it may stand in the folder, else the name has to do."""
        queue, file = self.config.queue, self.config.out / "run_uid"
        kept = file.read_text().strip() if file.is_file() else self.spec.name
        return RunIdentity(
            uid=queue.run_uid if queue else kept,
            name=self.spec.name,
            folder=self.config.out,
            settings=self.spec.model_dump(mode="json", exclude_none=True),
        )

    async def _train_on(self, batch: list[Any], started: float) -> None:
        samples = [sample for one in batch for sample in one.samples]
        staleness = [self.intake.staleness(one.group) or 0 for one in batch]
        groups = [] if self.spec.offline else [(one.group, one.samples) for one in batch]
        if self.spec.rollout.keep and groups:
            path = rollout_file(self.config.out / "rollouts", self.step + 1)
            await self._in_thread(keep_rollouts, path, groups)
        metrics: dict[str, float] = await self._in_thread(self.trainer.step, samples)
        if groups:
            metrics |= await self._in_thread(self._watch.seen, self.step, groups, metrics)
        self.intake.trained(batch)
        published = time.perf_counter()
        await self._publish()
        metrics["time/publish"] = time.perf_counter() - published
        metrics["staleness/mean"] = sum(staleness) / len(staleness)
        metrics["staleness/max"] = float(max(staleness))
        wall = time.perf_counter() - started
        metrics |= timings([one.group for one in batch], metrics["time/update"], wall)
        metrics |= self._logs.lost()
        self.state.metrics = metrics
        row = append_metrics(self._metrics_file, self.step, metrics, self.ledger)
        self._logs.write(self.step, row["time"], row)

    async def _finish(self) -> None:
        await self._checkpoint()
        await self._in_thread(self._write_model)
        await self._queue.leave()
        self.state.phase = "finished"
        self._answer(self.state.last_checkpoint)
        _log.info("finished", step=self.step, **self.ledger.counts())

    # ------------------------------------------------------------ weights, checkpoints

    async def _publish(self) -> None:
        """Publish the trained weights; what is published must be their exact cast."""
        before = self.state.version
        version, changed = await self._in_thread(self._published)
        self.intake.published(version, self.step)
        self.state.version = version
        if changed or before is None:
            self._announce()

    def _published(self) -> tuple[Version, bool]:
        if not self.trainer.optimiser.matches():
            raise Corrupted("the weights to be published are not the cast of the trained ones")
        return self._weights.publish(
            self._epoch, self.step, self.trainer.serving_weights(), frozen=self._frozen
        )

    async def _checkpoint(self) -> None:
        """Write a checkpoint (unless the last one says all there is), then acknowledge everything it covers."""
        if self.intake.unacknowledged or self._checkpointed_step != self.step:
            await self._write_checkpoint()
            # Written all the same where the queue is away: the next checkpoint acknowledges these too.
            await self.intake.mending(self.intake.acknowledge)
        self._answer(self.state.last_checkpoint)

    async def _write_checkpoint(self) -> None:
        with contextlib.suppress(Unavailable):
            await self._queue.scan()  # LostOwnership: another learner writes here by now
        state = {"epoch": self._epoch, "step": self.step, **self.intake.state()}
        path = await self._in_thread(
            self._checkpoints.write,
            self.step,
            self._loaded,
            self.trainer.state_dict(),
            state,
            self.trainer.adapter,
        )
        self.state.last_checkpoint, self._checkpointed_step = str(path), self.step

    def _write_model(self) -> None:
        """model/, and published.json: the version whose bytes it holds, for whoever must be sure of it.

        Its digest is of the policy alone, as the folder is. An adapter is merged into it, and stands in adapter/ too.
        """
        assert self.state.version is not None  # noqa: S101 - _begin published
        held = replace(self.state.version, digest=policy_digest(self._weights.newest().manifest.tensors))
        folder, published = self.config.out / "model", self.config.out / "published.json"
        adapter = self.trainer.adapter
        with storage_errors(f"the trained model in {folder}"):
            write_folder(folder, self._write_whole)
            if self.spec.optimiser.weight_average is not None:
                with self.trainer.optimiser.averaged():
                    write_folder(
                        self.config.out / "model-average",
                        lambda aside: write_model(self._loaded, aside, adapter),
                    )
            if adapter is not None:
                write_folder(self.config.out / "adapter", adapter.write)
                # Of the merged bytes, also where the factors are what is delivered.
                held = replace(held, digest=whole_digest(entries_of(adapter.merged())))
            published.write_text(json.dumps(asdict(held)) + "\n")

    def _write_whole(self, folder: Path) -> None:
        if self.trainer.adapter is None:
            self._files.write_model(self._loaded, folder)
        else:
            write_model(self._loaded, folder, self.trainer.adapter)
        for name, tensors in self.trainer.components().items():
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
