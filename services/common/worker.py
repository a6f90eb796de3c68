"""Owns the loop that works one stage: take, process, move on. Knows neither Redis nor what a processor does.

    take ──▶ parse ──▶ process (executor) ──▶ advance │ hand back │ fail
      ▲       └───────── leases are renewed until it has moved ───┘
      └───────────────────────────────────────────────────────────┘
    drain: stopping is set ─▶ process returns early, or does not begin ─▶ unfinished handed back ─▶ leave
    marked: the same, then it rests, and takes again once the mark is gone

Whatever goes wrong with a group is data and travels with it; whatever goes wrong with the queue is waited
out, and so is, for a while, what the work is done by (a server of somebody else's) where that is away or full.
The loop itself never raises.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import structlog
from google.protobuf.message import DecodeError

from services.common import tracing
from services.common.drain_mark import DrainMark, Mark
from services.common.errors import Corrupted, Overloaded, TrimtabError, Unauthenticated, Unavailable
from services.common.failures import error_info, failed_payload
from services.common.stage_metrics import StageMetrics
from services.common.stages.base import (
    ATTEMPT_LIMIT,
    LEARNER_STAGE,
    RENEW_SECONDS,
    Advance,
    Entry,
    StageQueue,
)
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

BLOCK_SECONDS = 1.0
# For a server that restarts with its model; what our clients have, too. Then a group has failed once.
PATIENCE_SECONDS = 300.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0

# Not the groups' fault: a server that is away, and one whose users have not the rights (yet) that a worker needs.
_WAITED_OUT = (Unavailable, Unauthenticated)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one group: done, to be continued by whoever takes it next, or failed with an error.

    away: what the work is done by cannot be reached or is full, by its error; the worker asks for the group again.
    """

    kind: Literal["done", "unfinished", "failed", "away"]
    error: common.ErrorInfo | None = None


def outcome_of_error(error: Exception, *, origin: str) -> Outcome:
    """A group's outcome where its work raised: away for what may pass by itself, else failed."""
    kind: Literal["failed", "away"] = "away" if isinstance(error, Overloaded | Unavailable) else "failed"
    return Outcome(kind, error_info(error, origin=origin))


class StageProcessor(Protocol):
    """The domain of one stage, as the worker sees it."""

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        """Edit the groups in place; one outcome each, in order. Runs on the worker's executor.

        Once `stopping` is set, return soon, with "unfinished" for what can be continued elsewhere. An
        exception counts for every group of the call (`outcome_of_error`). A group may come again, as it was left.
        """
        ...


@dataclass(slots=True)
class _Job:
    """One taken entry on its way through the loop."""

    entry: Entry
    outcome: Outcome | None = None
    payload: bytes = b""
    destination: str = LEARNER_STAGE
    lost: bool = field(default=False)
    moving: bool = field(default=False)
    """Whose it is the move itself finds out from now on: a renewal that comes after it finds nothing."""


class StageWorker:
    """Works `stage` until drained, and rests while `mark` is there. `replica` names this worker in logs."""

    def __init__(
        self,
        queue: StageQueue,
        stage: str,
        processor: StageProcessor,
        executor: concurrent.futures.Executor,
        *,
        batch_groups: int,
        renew_seconds: float = RENEW_SECONDS,
        attempt_limit: int = ATTEMPT_LIMIT,
        replica: str = "",
        block_seconds: float = BLOCK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        mark: Mark | None = None,
    ) -> None:
        self._queue = queue
        self._stage = stage
        self._processor = processor
        self._executor = executor
        self._batch_groups = batch_groups
        self._renew_seconds = renew_seconds
        self._attempt_limit = attempt_limit
        self._block_seconds = block_seconds
        self._patience_seconds = patience_seconds
        self._mark: Mark = mark or DrainMark(None)
        self._marked = False
        # What processors look at: set while this worker is to hold nothing, for now (marked) or for good.
        self._letting_go = threading.Event()
        # What the executor was given last.
        self._given: concurrent.futures.Future[None] | None = None
        self._stopping = threading.Event()
        self._stopped = asyncio.Event()
        self._ended = asyncio.Event()
        self._started = False
        self._metrics = StageMetrics(stage)
        self._log = structlog.get_logger(__name__).bind(stage=stage, replica=replica or queue.consumer)

    async def run(self) -> None:
        """Work until drain. Returns once this worker holds nothing and has left the stage."""
        self._started = True
        following = asyncio.create_task(self._mark.follow(self._heed))
        try:
            while not self._stopping.is_set():
                await (self._rest() if self._marked else self._round())
        finally:
            following.cancel()
            await self._queue.leave()
            self._ended.set()

    async def drain(self) -> None:
        """Stop reading, let process() come back, hand back what is unfinished; returns when run() has."""
        self._stopping.set()
        self._let_go()
        self._stopped.set()
        if self._started:
            await self._ended.wait()

    def _let_go(self) -> None:
        """What runs hears of it. What waits is not to begin: calls of a service may keep its executor for minutes."""
        self._letting_go.set()
        if self._given is not None:
            self._given.cancel()

    # -------------------------------------------------------------- the mark

    async def _heed(self, marked: bool) -> None:
        self._marked = marked
        self._log.info("marked: takes nothing more" if marked else "the mark is gone: takes work again")
        if marked:
            self._let_go()
        elif not self._stopping.is_set():
            self._letting_go.clear()

    async def _rest(self) -> None:
        """Hold nothing while the mark is there. Only here, between two rounds, does the gauge say so."""
        await self._queue.leave()
        self._metrics.draining(True)
        while self._marked and not self._stopping.is_set():
            await self._pause(self._mark.poll_seconds)
        # At the end of the process it stays: whoever reads it now must not think that there is work again.
        if not self._stopping.is_set():
            self._metrics.draining(False)

    async def _take(self) -> list[Entry]:
        return await self._queue.take(
            self._stage, limit=self._batch_groups, block_seconds=self._block_seconds
        )

    # -------------------------------------------------------------- one batch

    async def _round(self) -> None:
        """Nothing that happens in one round ends the service; what it held is left to its leases."""
        try:
            if entries := await self._persist(self._take, given_up=self._letting_go):
                await self._work([_Job(entry) for entry in entries])
        except TrimtabError as error:
            self._log.error("round given up", error=str(error))
            await self._pause(_LONGEST_PAUSE_SECONDS)
        except Exception:
            self._log.exception("round given up")
            await self._pause(_LONGEST_PAUSE_SECONDS)

    async def _work(self, jobs: list[_Job]) -> None:
        self._metrics.took(len(jobs))
        try:
            await self._process_and_settle(jobs)
        finally:
            self._metrics.took(0)
            for job in jobs:
                self._metrics.left("lost" if job.lost or job.outcome is None else job.outcome.kind)

    async def _process_and_settle(self, jobs: list[_Job]) -> None:
        """The leases are renewed as long as it takes, also while a queue that is full takes nothing back."""
        finished = asyncio.Event()
        renewing = asyncio.create_task(self._renew(jobs, finished))
        try:
            if self._letting_go.is_set() or not await self._process(jobs):
                for job in jobs:
                    job.outcome, job.payload = Outcome("unfinished"), job.entry.payload
            await self._move_on([job for job in jobs if not job.lost])
        finally:
            finished.set()
            await renewing

    async def _process(self, jobs: list[_Job]) -> bool:
        """Run the processor on its executor; whether it began, which it does not after `_let_go`."""
        self._given = work = self._executor.submit(self._process_here, jobs)
        done = asyncio.wrap_future(work)
        await asyncio.wait([done])
        if work.cancelled():
            return False
        done.result()
        return True

    def _process_here(self, jobs: list[_Job]) -> None:
        """On the executor: parse, process, serialise."""
        pairs = [(job, group) for job in jobs if (group := self._parse(job)) is not None]
        if not pairs:
            return
        groups = [group for _, group in pairs]
        began = time.monotonic()
        outcomes = self._patiently(groups)
        ended = time.monotonic()
        self._metrics.worked(len(groups), ended - began)
        for (job, group), outcome in zip(pairs, outcomes, strict=True):
            code = outcome.error.code if outcome.error is not None else ""
            tracing.stage(
                f"stage {self._stage}", job.entry.traceparent, began, ended, error=code, groups=len(groups)
            )
            self._conclude(job, group, outcome)

    def _patiently(self, groups: Sequence[RolloutGroup]) -> list[Outcome]:
        """Outcomes of all groups. Those of which the work is away are tried again, for a while."""
        outcomes = self._tried(groups)
        ends = time.monotonic() + self._patience_seconds
        pause, told = _FIRST_PAUSE_SECONDS, False
        while away := [at for at, outcome in enumerate(outcomes) if outcome.kind == "away"]:
            if not told:
                error = outcomes[away[0]].error
                why = error.message if error else ""
                self._log.warning("what does the work is away or full, waiting for it", error=why)
                told = True
            if time.monotonic() >= ends:
                again = [Outcome("failed", outcomes[at].error) for at in away]
            elif self._letting_go.wait(pause * random.uniform(0.5, 1.0)):
                again = [Outcome("unfinished") for _ in away]
            else:
                again = self._tried([groups[at] for at in away])
            for at, outcome in zip(away, again, strict=True):
                outcomes[at] = outcome
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        return outcomes

    def _tried(self, groups: Sequence[RolloutGroup]) -> list[Outcome]:
        try:
            outcomes = self._processor.process(list(groups), self._letting_go)
            if len(outcomes) != len(groups):
                raise Corrupted(f"the processor gave {len(outcomes)} outcomes for {len(groups)} groups")
        except Exception as error:
            # Also what is not ours: a model's own exceptions fail groups, never the service.
            if not isinstance(error, TrimtabError):
                self._log.exception("processor raised", group_ids=[group.group_id for group in groups])
            return [outcome_of_error(error, origin=self._stage)] * len(groups)
        return outcomes

    def _parse(self, job: _Job) -> RolloutGroup | None:
        """The group, or None where it has failed already: too many attempts, unreadable, not for us."""
        try:
            group = RolloutGroup.FromString(job.entry.payload)
        except DecodeError as error:
            job.outcome = Outcome("failed", self._info(Corrupted(f"payload is no RolloutGroup: {error}")))
            return None
        if job.entry.attempts >= self._attempt_limit:
            text = f"its worker was lost {job.entry.attempts} times"
            job.outcome = Outcome("failed", self._info(Unavailable(text)))
            return None
        if not group.slip or group.slip[0] != self._stage:
            text = f"slip {list(group.slip)} does not begin with {self._stage}"
            job.outcome = Outcome("failed", self._info(Corrupted(text)))
            return None
        return group

    def _conclude(self, job: _Job, group: RolloutGroup, outcome: Outcome) -> None:
        job.outcome = outcome
        if outcome.kind == "failed":
            return
        if outcome.kind == "done":
            del group.slip[0]
            job.destination = group.slip[0] if group.slip else LEARNER_STAGE
        job.payload = group.SerializeToString()

    async def _renew(self, jobs: Sequence[_Job], finished: asyncio.Event) -> None:
        while not await _set_within(finished, self._renew_seconds):
            held = [job for job in jobs if not job.lost]
            try:
                kept = await self._queue.renew([job.entry for job in held])
            except TrimtabError as error:
                self._log.warning("leases could not be renewed", error=str(error))
                continue
            for job, ours in zip(held, kept, strict=True):
                if not ours and not job.moving:
                    self._drop(job)

    # -------------------------------------------------------------- moving on

    async def _move_on(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            job.moving = True
        await self._settle("done", jobs, self._advance)
        await self._settle("unfinished", jobs, self._hand_back)
        for job in jobs:
            await self._settle("failed", [job], self._fail)

    async def _settle(
        self,
        kind: str,
        jobs: Sequence[_Job],
        act: Callable[[Sequence[_Job]], Awaitable[Sequence[bool]]],
    ) -> None:
        chosen = [job for job in jobs if job.outcome and job.outcome.kind == kind]
        if not chosen:
            return
        try:
            moved = await self._persist(lambda: act(chosen))
        except _WAITED_OUT:
            raise
        except TrimtabError as error:
            if kind == "failed":
                raise
            # The queue refuses (a destination of a wrong type, a stage name): that is the group's failure.
            self._log.error("groups could not be moved", error=str(error), groups=len(chosen))
            for job in chosen:
                job.outcome = Outcome("failed", self._info(error))
            return
        for job, ours in zip(chosen, moved, strict=True):
            if not ours:
                self._drop(job)

    async def _advance(self, jobs: Sequence[_Job]) -> Sequence[bool]:
        return await self._queue.advance(
            [Advance(entry=job.entry, destination=job.destination, payload=job.payload) for job in jobs]
        )

    async def _hand_back(self, jobs: Sequence[_Job]) -> Sequence[bool]:
        return await self._queue.hand_back([(job.entry, job.payload) for job in jobs])

    async def _fail(self, jobs: Sequence[_Job]) -> Sequence[bool]:
        return [await self._fail_one(job) for job in jobs]

    async def _fail_one(self, job: _Job) -> bool:
        error = (job.outcome and job.outcome.error) or self._info(Corrupted("failed without an error"))
        self._log.warning(
            "group failed",
            group_id=job.entry.group_id,
            attempts=job.entry.attempts + 1,
            code=error.code,
            error=error.message,
        )
        return await self._queue.fail(job.entry, payload_if_last=failed_payload(job.entry, error))

    def _drop(self, job: _Job) -> None:
        job.lost = True
        self._log.warning("group is not ours any more, work dropped", group_id=job.entry.group_id)

    # -------------------------------------------------------------- patience

    async def _persist(
        self, action: Callable[[], Awaitable[Result]], *, given_up: threading.Event | None = None
    ) -> Result:
        """Do it, again and again while the queue is away, until `given_up` (a drain, where not named) is set."""
        given_up = given_up or self._stopping
        pause, told = _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                return await action()
            except _WAITED_OUT as error:
                if given_up.is_set():
                    raise
                if not told:
                    away = isinstance(error, Unavailable)
                    event = "queue is away, waiting for it" if away else "queue refuses this worker, waiting"
                    self._log.warning(event, error=str(error))
                    told = True
            await self._pause(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        await _set_within(self._stopped, seconds)

    def _info(self, error: Exception) -> common.ErrorInfo:
        return error_info(error, origin=self._stage)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
