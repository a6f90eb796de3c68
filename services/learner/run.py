"""The run: what the learner does from its first admission to its last checkpoint.

           ┌────────────── in flight < (max_staleness + 1) * batch ──────────────┐
           ▼                                                                     │
    admit prompts ─▶ wait for a batch (lowest numbers first) ─▶ update ─▶ publish ─▶ checkpoint ─▶ acknowledge
                       │  every few seconds: ledger against the queue              (every few steps)
                       └─ stale, failed, lost: counted, admitted again

It waits in exactly one place, for a batch. It owns the ledger; it knows nothing of how engines sample.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog
from google.protobuf.message import DecodeError

from services.common.errors import Corrupted, InvalidInput, TrimtabError, Unavailable
from services.common.stages.base import LEARNER_STAGE, Entry, LearnerQueue, NewEntry
from services.learner.admission import Versions, prompt_index, room
from services.learner.checkpoints import Checkpoints, write_model
from services.learner.config import LearnerConfig
from services.learner.ledger import Admitted, Ledger
from services.learner.prompts import Prompt
from services.learner.rollouts import admitted_of, digests_of, model_seconds, new_group, samples_of
from services.learner.training import Sample, Trainer
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel
from services.models.manifest import Version
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

Phase = Literal["loading", "training", "paused", "finished", "failed"]
_TAKE_SECONDS = 0.5
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Arrived:
    """A group that can be trained on."""

    entry: Entry
    group: RolloutGroup
    samples: list[Sample]


@dataclass(slots=True)
class RunState:
    """What GetRunStatus tells."""

    phase: Phase = "loading"
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    last_checkpoint: str = ""
    error: str = ""
    version: Version | None = None


class Run:
    """One learner's run. Everything runs on one event loop but what `executor` is given: the model's thread."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        run_uid: str,
        loaded: LoadedModel,
        trainer: Trainer,
        prompts: list[Prompt],
        queue: LearnerQueue,
        weights: PublishedWeights,
        executor: Executor,
        announce: Callable[[], None],
    ) -> None:
        self.config, self.spec = config, config.run
        self.state = RunState()
        self.ledger = Ledger()
        self.trainer = trainer
        self._run_uid, self._loaded, self._prompts = run_uid, loaded, prompts
        self._queue, self._weights, self._executor, self._announce = queue, weights, executor, announce
        self._checkpoints = Checkpoints(config.out / "checkpoints", keep=self.spec.checkpoint.keep)
        self._versions = Versions({})
        self._epoch, self._position = 0, 0
        self._arrived: dict[str, Arrived] = {}
        self._unacknowledged: list[Entry] = []
        self._going = asyncio.Event()
        self._going.set()
        self._stopping = False
        self._checkpoint_wanted: list[asyncio.Future[str]] = []
        self._looked_at = time.monotonic()
        self._frozen = frozenset(
            name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.step_number

    @property
    def awaiting_checkpoint(self) -> int:
        """Entries used but not acknowledged yet."""
        return len(self._unacknowledged)

    # ------------------------------------------------------------ the flow

    async def train(self) -> None:
        """From the last checkpoint (or the beginning) to the last step."""
        await self._begin()
        if self.step >= self.spec.steps:
            _log.warning("nothing to train: the checkpoint is at the last step", step=self.step)
        while self.step < self.spec.steps and not self._stopping:
            self.state.phase = "training" if self._going.is_set() else "paused"
            await self._going.wait()
            if self._stopping:
                break
            started = time.perf_counter()
            batch = await self._next_batch()
            if batch is None:
                continue
            await self._train_on(batch, started)
            if self.step % self.spec.checkpoint.every_steps == 0 or self._checkpoint_wanted:
                await self._checkpoint()
        await self._finish()

    def pause(self) -> None:
        """Admit nothing more and hold at the next step boundary."""
        self._going.clear()
        self.state.phase = "paused"

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def stop(self) -> None:
        """End after a last checkpoint."""
        self._stopping = True
        self._going.set()

    async def checkpoint(self) -> str:
        """Ask for a checkpoint at the next step boundary; its path."""
        if self.state.phase not in ("training", "paused"):
            return self.state.last_checkpoint
        if not self._going.is_set():
            return await self._checkpoint()
        wanted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._checkpoint_wanted.append(wanted)
        return await wanted

    async def _begin(self) -> None:
        """Take up the last checkpoint, begin an epoch, publish, and settle what the queue still holds."""
        latest = self._checkpoints.latest()
        used_epoch = 0
        if latest is not None:
            trainer, state = await self._in_thread(self._checkpoints.read, latest)
            await self._in_thread(self.trainer.load_state_dict, trainer)
            self.ledger = Ledger.of(state["ledger"])
            self._versions = Versions(dict(state["versions"]))
            self._position, used_epoch = int(state["position"]), int(state["epoch"])
            self.state.last_checkpoint = str(latest)
            _log.info("resumed", checkpoint=str(latest), step=self.step)
        await self._in_thread(keep_metrics, self.config.out / "metrics.jsonl", self.step)
        self._epoch = await self._queue.start_epoch(at_least=used_epoch)
        await self._publish()
        await self._settle_queue(resumed=latest is not None)

    async def _settle_queue(self, *, resumed: bool) -> None:
        """After a start: what the queue holds and the ledger does not know was admitted after the checkpoint."""
        scan = await self._queue.scan()
        unknown = scan.group_ids - set(self.ledger.in_flight) - set(self.ledger.ended)
        if unknown:
            _log.info("groups admitted after the checkpoint are taken over", groups=len(unknown))
        for group_id in sorted(unknown):
            self.ledger.adopt(_admitted_from_id(group_id))
        self._position = max(self._position, self.ledger.next_number)
        if resumed:
            await self._readmit_lost(scan.group_ids)

    async def _next_batch(self) -> list[Arrived] | None:
        """A step's groups; None when the run was paused or stopped before they were there."""
        while len(self._arrived) < self.spec.rollout.batch_groups:
            if self._stopping or not self._going.is_set():
                return None
            try:
                await self._fill_and_take()
            except Unavailable as error:
                # Away, or come back empty: only a look at all stages tells, and mends the second.
                _log.warning("the queue did not answer", error=str(error))
                await self._look_after(at_once=True)
        first = sorted(self._arrived.values(), key=lambda one: one.entry.admission_number)
        batch = first[: self.spec.rollout.batch_groups]
        for one in batch:
            del self._arrived[one.entry.group_id]
        return batch

    async def _fill_and_take(self) -> None:
        await self._admit()
        entries = await self._queue.take(
            LEARNER_STAGE, limit=self.spec.rollout.batch_groups, block_seconds=_TAKE_SECONDS
        )
        for entry in entries:
            await self._receive(entry)
        if not entries:
            await self._look_after()

    async def _train_on(self, batch: list[Arrived], started: float) -> None:
        samples = [sample for one in batch for sample in one.samples]
        metrics = await self._in_thread(self.trainer.step, samples)
        for one in batch:
            self.ledger.end(one.entry.group_id, "trained")
            self._unacknowledged.append(one.entry)
        published = time.perf_counter()
        await self._publish()
        metrics["time/publish"] = time.perf_counter() - published
        metrics |= self._timings(batch, metrics["time/update"], time.perf_counter() - started)
        self.state.metrics = metrics
        self._write_metrics(metrics)

    async def _finish(self) -> None:
        if self._unacknowledged or not self.state.last_checkpoint.endswith(f"{self.step:06d}"):
            await self._checkpoint()
        await self._in_thread(write_model, self._loaded, self.config.out / "model")
        self._write_published()
        await self._queue.leave()
        self.state.phase = "finished"
        _log.info("finished", step=self.step, **self.ledger.counts())

    # ------------------------------------------------------------ admission and what comes back

    async def _admit(self) -> None:
        """Fill up to the bound, on the first stage of the slip."""
        left = self.spec.steps - self.step
        count = room(self.spec.rollout, in_flight=len(self.ledger.in_flight), steps_left=left)
        if count:
            await self._send([self._new(self._next_prompt()) for _ in range(count)])

    def _next_prompt(self) -> int:
        index = prompt_index(
            self._position, len(self._prompts), seed=self.spec.seed, shuffle=self.spec.data.shuffle
        )
        self._position += 1
        return index

    def _new(self, index: int, *, tries: int = 0, replaces: str = "") -> Admitted:
        group_id = f"{self._epoch}-{self.ledger.next_number:08d}-{index}"
        return self.ledger.admit(index, group_id, tries=tries, replaces=replaces)

    async def _send(self, admitted: list[Admitted]) -> None:
        version = self.state.version
        assert version is not None  # noqa: S101 - _begin published before anything is admitted
        entries = []
        for one in admitted:
            prompt = self._prompts[one.prompt_index]
            group = new_group(one, prompt, self.spec, run_uid=self._run_uid, version=version, step=self.step)
            entries.append(
                NewEntry(
                    group_id=one.group_id, admission_number=one.number, payload=group.SerializeToString()
                )
            )
        await self._queue.admit(self.spec.rollout.slip[0], entries)

    async def _receive(self, entry: Entry) -> None:
        """Sort what arrived: used already, failed, stale, undigestible, or good."""
        if entry.group_id in self.ledger.ended:
            self._unacknowledged.append(entry)
            return
        try:
            group = RolloutGroup.FromString(entry.payload)
            if entry.group_id not in self.ledger.in_flight:
                self.ledger.adopt(admitted_of(group))
            if group.HasField("failure"):
                await self._end(entry, "failed", group.failure.message)
                return
            staleness = self._versions.staleness(digests_of(group), self.step)
            if staleness is None or staleness > self.spec.rollout.max_staleness:
                await self._end(entry, "stale", f"{staleness} steps behind")
                return
            self._arrived[entry.group_id] = Arrived(entry, group, samples_of(group, self.spec))
        except (DecodeError, TrimtabError) as error:
            await self._bury(entry, str(error))

    async def _end(self, entry: Entry, how: Literal["stale", "failed"], why: str) -> None:
        self._unacknowledged.append(entry)
        _log.warning("group is not trained on", group_id=entry.group_id, how=how, why=why)
        await self._replace(self.ledger.end(entry.group_id, how))

    async def _bury(self, entry: Entry, why: str) -> None:
        """What nobody can digest is kept for a person to look at, and counted as failed."""
        _log.error("group goes to the dead letters", group_id=entry.group_id, why=why)
        await self._queue.bury(entry, reason=why)
        await self._replace(self.ledger.end(entry.group_id, "failed"))

    async def _replace(self, ended: Admitted | None) -> None:
        """Admit the prompt again, or give it up after readmission_limit tries; a new prompt then fills up."""
        if ended is None:
            return
        if ended.tries >= self.spec.rollout.readmission_limit:
            _log.error("prompt is given up", prompt_index=ended.prompt_index, tries=ended.tries + 1)
            return
        await self._send([self._new(ended.prompt_index, tries=ended.tries + 1, replaces=ended.group_id)])

    async def _look_after(self, *, at_once: bool = False) -> None:
        """While nothing arrives: is anything lost, is anybody working?"""
        if not at_once and time.monotonic() - self._looked_at < self.config.watch_seconds:
            return
        self._looked_at = time.monotonic()
        try:
            scan = await self._queue.scan()
            if not scan.sentinel:
                _log.error("the queue server came back empty", in_flight=len(self.ledger.in_flight))
                await self._queue.restore_sentinel()
            await self._readmit_lost(scan.group_ids)
        except Unavailable as error:
            _log.warning("the queue is away", error=str(error))
            self.state.warnings = ["the queue is away"]
            await asyncio.sleep(_TAKE_SECONDS)
            return
        self.state.warnings = [
            f"no worker on stage {view.stage}: {view.length} groups wait"
            for view in scan.stages
            if view.length and not view.consumers and view.stage != LEARNER_STAGE
        ]
        for warning in self.state.warnings:
            _log.warning(warning)

    async def _readmit_lost(self, present: frozenset[str]) -> None:
        lost = [one for one in self.ledger.lost(present) if one.group_id not in self._arrived]
        if lost:
            _log.error("groups are gone from the queue and are admitted again", groups=len(lost))
        for one in lost:
            await self._replace(self.ledger.end(one.group_id, "failed"))

    # ------------------------------------------------------------ weights, checkpoints, metrics

    async def _publish(self) -> None:
        """Publish the trained weights; what is published must be their exact cast."""
        before = self.state.version
        version, changed = await self._in_thread(self._published)
        self._versions.publish(Version(version.epoch, self.step, version.digest))
        self.state.version = version
        if changed or before is None:
            self._announce()

    def _published(self) -> tuple[Version, bool]:
        if not self.trainer.optimiser.matches():
            raise Corrupted("the weights to be published are not the cast of the trained ones")
        return self._weights.publish(
            self._epoch, self.step, self.trainer.serving_weights(), frozen=self._frozen
        )

    async def _checkpoint(self) -> str:
        """Write a checkpoint, then acknowledge everything that it covers."""
        covered = self._unacknowledged
        state = {
            "epoch": self._epoch,
            "step": self.step,
            "position": self._position,
            "ledger": self.ledger.state(),
            "versions": list(self._versions.step_of.items()),
        }
        path = await self._in_thread(
            self._checkpoints.write, self.step, self._loaded, self.trainer.state_dict(), state
        )
        self.state.last_checkpoint = str(path)
        try:
            await self._queue.acknowledge(covered)
            self._unacknowledged = [entry for entry in self._unacknowledged if entry not in covered]
        except Unavailable as error:
            # Written all the same; the next checkpoint acknowledges these too.
            _log.warning("the checkpoint could not be acknowledged yet", error=str(error))
            await self._look_after(at_once=True)
        for wanted in self._checkpoint_wanted:
            wanted.set_result(str(path))
        self._checkpoint_wanted = []
        return str(path)

    def _timings(self, batch: list[Arrived], update: float, wall: float) -> dict[str, float]:
        """Seconds inside models by stage, and what is left of the step: overhead."""
        stages = ("policy", "reference", "reward")
        spent = dict.fromkeys(stages, 0.0)
        tokens = 0
        for one in batch:
            for timing in one.group.timings:
                name = timing.stage.partition("/")[0]
                spent[name] = spent.get(name, 0.0) + timing.model_seconds
                tokens += timing.tokens if name == "policy" else 0
        inside = update + sum(model_seconds(one.group) for one in batch)
        return {f"time/{name}": seconds for name, seconds in spent.items()} | {
            "time/step": wall,
            "overhead_share": 1 - inside / wall,
            "tokens_per_second": tokens / max(spent["policy"], 1e-9),
        }

    def _write_published(self) -> None:
        """published.json: the version whose bytes model/ holds, for whoever must be sure of it."""
        assert self.state.version is not None  # noqa: S101 - _begin published
        path = self.config.out / "published.json"
        path.write_text(json.dumps(asdict(self.state.version)) + "\n")

    def _write_metrics(self, metrics: dict[str, float]) -> None:
        row: dict[str, Any] = {"step": self.step, "time": time.time(), **metrics, **_flat(self.ledger)}
        with (self.config.out / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def keep_metrics(path: Path, steps: int) -> None:
    """Drop the rows of steps that will be trained again."""
    if not path.exists():
        return
    rows = [line for line in path.read_text().split("\n") if _step_of(line) in range(1, steps + 1)]
    path.write_text("".join(f"{line}\n" for line in rows))


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line that a crash cut short.
        return 0


def _flat(ledger: Ledger) -> dict[str, int]:
    return {f"rollouts/{name}": count for name, count in ledger.counts().items()}


def _admitted_from_id(group_id: str) -> Admitted:
    """Ids say epoch, admission number and prompt, so that a ledger can be made up for after a crash."""
    try:
        _epoch, number, index = group_id.split("-")
        return Admitted(group_id, int(number), int(index), 0)
    except ValueError as error:
        raise InvalidInput(f"the queue holds a group {group_id!r} that no learner admitted") from error
