"""Watches children and carries out what the planner decides. Decides nothing itself.

┌── observe: poll exits, probe health ──▶ plan (pure) ──▶ execute: start, SIGTERM, SIGKILL ──┐
└────────────────── every 50 ms, from what is there, not from what happened ◀────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from orchestrator.local.health import Health
from orchestrator.local.processes import Child
from orchestrator.planning.processes import (
    USER_ERROR,
    Action,
    Forget,
    GiveUp,
    Kill,
    Limits,
    Restart,
    Seen,
    Start,
    Terminate,
    Wanted,
    backoff_seconds,
    count_end,
    describe_exit,
    phase,
    plan,
)
from services.common.errors import AlreadyExists, Expired, NotFound, ServiceError, TrimtabError, UserError

_LOG = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
_PROBE_SECONDS = 1.0
_PROBE_SECONDS_STARTING = 0.2
_PROBE_TIMEOUT_SECONDS = 5.0
_PAUSED_SECONDS = 5.0
"""Between two looks: more than any load makes of a tick of 50 ms."""
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """A process, for people."""

    name: str
    phase: str
    pid: int | None
    restarts: int
    message: str = ""


@dataclass(slots=True)
class _Record:
    """A child and what has been seen of it."""

    child: Child
    seen: Seen
    message: str = ""
    probed_at: float = _NEVER
    probing: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Desired:
    want: Wanted
    child: Child
    drain_rank: int


@dataclass(slots=True)
class Supervisor:
    """Keeps the wanted children running. Use it as an async context manager, in the main thread.

    `on_event` hears one line for a person about each start after the first, failure and kill.
    """

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    on_event: Callable[[str], None] = _LOG.info
    _desired: dict[str, _Desired] = field(default_factory=dict)
    _records: dict[str, _Record] = field(default_factory=dict)
    _loop: asyncio.Task[None] | None = None
    _looked_at: float = float("inf")

    def want(
        self,
        child: Child,
        *,
        needs: Sequence[str] = (),
        drain_rank: int = 0,
        restart: Restart = Restart.ALWAYS,
    ) -> None:
        """From now on `child` should run. Raises AlreadyExists if its name is taken."""
        if child.name in self._desired or child.name in self._records:
            raise AlreadyExists(f"a process named {child.name} is supervised already")
        want = Wanted(name=child.name, needs=tuple(needs), restart=restart)
        self._desired[child.name] = _Desired(want, child, drain_rank)

    def unwant(self, name: str) -> None:
        """From now on `name` should not run; the loop drains it."""
        self._desired.pop(name, None)

    def status(self) -> list[ProcessStatus]:
        """All processes in the order they were asked for."""
        now, names = self.clock(), [*self._desired, *(n for n in self._records if n not in self._desired)]
        return [self._status(name, now) for name in names]

    def serving(self, name: str) -> bool:
        """Whether it runs and answered SERVING when last asked."""
        record = self._records.get(name)
        return record is not None and record.seen.running and record.seen.serving

    def failure(self, name: str) -> TrimtabError | None:
        """Why `name` was given up: UserError for a wrong configuration, else ServiceError."""
        record = self._records.get(name)
        if record is None or not record.seen.given_up:
            return None
        kind = UserError if record.seen.exit_code == USER_ERROR else ServiceError
        return kind(f"{name}: {record.message}")

    def raise_failures(self) -> None:
        """Raise the first failure of any process, if there is one."""
        for name in self._records:
            if (failure := self.failure(name)) is not None:
                raise failure

    async def until_serving(self, name: str, timeout_seconds: float) -> None:
        """Wait until it serves. Raises what it failed with, or Expired."""
        await self._until(name, lambda: self.serving(name), timeout_seconds, "serve")

    async def until_ended(self, name: str, timeout_seconds: float | None = None) -> int:
        """Wait until it has ended for good (see Restart); its exit status. Raises if it was given up."""
        await self._until(name, lambda: self._ended(name), timeout_seconds, "end")
        code = self._records[name].seen.exit_code
        return 1 if code is None else code

    async def until_gone(self, name: str) -> None:
        """Wait until an unwanted process is no longer there."""
        while name in self._records:
            self._check_loop()
            await asyncio.sleep(_TICK_SECONDS)

    async def drain(self) -> None:
        """Want nothing, and wait until nothing is left: SIGTERM by rank, SIGKILL after the bound."""
        self._desired.clear()
        while self._records and self._loop is not None and not self._loop.done():  # noqa: ASYNC110 (a tick)
            await asyncio.sleep(_TICK_SECONDS)

    def kill_all(self) -> None:
        """SIGKILL to everything, now."""
        self._desired.clear()
        for record in self._records.values():
            record.child.kill()

    async def __aenter__(self) -> Supervisor:
        self._loop = asyncio.create_task(self._run(), name="supervisor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.drain()
        finally:
            self.kill_all()
            if self._loop is not None:
                self._loop.cancel()
                with suppress(asyncio.CancelledError):
                    await self._loop
            for record in self._records.values():
                await self._let_go(record)

    async def _run(self) -> None:
        try:
            while True:
                self._observe()
                wanted = [desired.want for desired in self._desired.values()]
                seen = [record.seen for record in self._records.values()]
                for action in plan(wanted, seen, self.clock(), self.limits):
                    await self._execute(action)
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            self.kill_all()

    def _observe(self) -> None:
        now = self.clock()
        self._forgive(now)
        for record in self._records.values():
            if not record.seen.running:
                continue
            code = record.child.poll()
            if code is not None:
                self._note_end(record, code, now)
            elif record.probing is None and now >= record.probed_at + self._probe_interval(record):
                record.probed_at = now
                record.probing = asyncio.create_task(self._probe(record))

    def _forgive(self, now: float) -> None:
        """Time in which nobody looked is no silence: whoever stopped us (a paused machine) stopped the children too."""
        missed = now - self._looked_at
        self._looked_at = now
        if missed < _PAUSED_SECONDS:
            return
        for record in self._records.values():
            seen = record.seen
            record.seen = replace(
                seen,
                last_answer_at=None if seen.last_answer_at is None else seen.last_answer_at + missed,
                terminated_at=None if seen.terminated_at is None else seen.terminated_at + missed,
            )

    def _probe_interval(self, record: _Record) -> float:
        return _PROBE_SECONDS if record.seen.serving else _PROBE_SECONDS_STARTING

    async def _probe(self, record: _Record) -> None:
        incarnation = record.seen.started_at
        try:
            health = await record.child.probe.check(_PROBE_TIMEOUT_SECONDS)
        finally:
            record.probing = None
        seen, now = record.seen, self.clock()
        if not seen.running or seen.started_at != incarnation:
            return
        serving = health is Health.SERVING
        first = now if serving and seen.serving_since is None else seen.serving_since
        answered = seen.last_answer_at if health is Health.SILENT else now
        record.seen = replace(seen, serving=serving, serving_since=first, last_answer_at=answered)

    def _note_end(self, record: _Record, code: int, now: float) -> None:
        record.message = record.child.last_words()
        seen = replace(
            record.seen,
            running=False,
            serving=False,
            exit_code=code,
            ended_at=now,
            last_words=record.message,
        )
        record.seen = replace(seen, history=count_end(seen, self.limits))
        desired = self._desired.get(seen.name)
        restarts = desired is not None and desired.want.restart is not Restart.NEVER
        expected = seen.terminated_at is not None or code == 0
        if restarts and not expected and code != USER_ERROR:
            wait = backoff_seconds(record.seen.history.failures, self.limits)
            why = f" ({record.message})" if record.message and code > 0 else ""
            self.on_event(f"{seen.name} {describe_exit(code)}{why}; back-off {wait:g} s")

    async def _execute(self, action: Action) -> None:
        now = self.clock()
        if isinstance(action, Start):
            self._start(action.name, now)
            return
        record = self._records.get(action.name)
        if record is None:
            return
        match action:
            case Terminate():
                record.child.terminate()
                record.seen = replace(record.seen, terminated_at=now)
            case Kill(reason=reason):
                self.on_event(f"{action.name} is killed: {reason}")
                record.child.kill()
                record.seen = replace(record.seen, killed_at=now)
            case GiveUp(reason=reason):
                user = record.seen.exit_code == USER_ERROR
                told = record.message or describe_exit(record.seen.exit_code)
                record.message = told if user else f"given up, {reason}; last line of its log: {told}"
                record.seen = replace(record.seen, given_up=True)
                self.on_event(f"{action.name}: {record.message}")
            case Forget():
                del self._records[action.name]
                await self._let_go(record)

    def _start(self, name: str, now: float) -> None:
        desired, before = self._desired.get(name), self._records.get(name)
        if desired is None:  # taken away since it was planned
            return
        seen = Seen(name=name, running=True, drain_rank=desired.drain_rank, started_at=now)
        if before is not None:
            history = replace(before.seen.history, restarts=before.seen.history.restarts + 1)
            seen = replace(seen, history=history)
            self.on_event(f"{name} is started again (restart {history.restarts})")
        record = _Record(desired.child, seen)
        self._records[name] = record
        try:
            desired.child.start()
        except (OSError, TrimtabError) as error:
            self._note_end(record, USER_ERROR if isinstance(error, UserError) else 1, now)
            why = error.strerror if isinstance(error, OSError) else None
            record.message = f"cannot be started: {why or error}"

    async def _let_go(self, record: _Record) -> None:
        if record.probing is not None:
            record.probing.cancel()
            with suppress(asyncio.CancelledError):
                await record.probing
        await record.child.probe.close()

    def _status(self, name: str, now: float) -> ProcessStatus:
        desired, record = self._desired.get(name), self._records.get(name)
        want = None if desired is None else desired.want
        if record is None:
            return ProcessStatus(name=name, phase=phase(want, None, now, self.limits), pid=None, restarts=0)
        return ProcessStatus(
            name=name,
            phase=phase(want, record.seen, now, self.limits),
            pid=record.child.pid if record.seen.running else None,
            restarts=record.seen.history.restarts,
            message=record.message,
        )

    def _ended(self, name: str) -> bool:
        desired, record = self._desired.get(name), self._records.get(name)
        if desired is None or record is None or record.seen.running:
            return False
        return phase(desired.want, record.seen, self.clock(), self.limits) == "finished"

    async def _until(
        self, name: str, holds: Callable[[], bool], timeout_seconds: float | None, word: str
    ) -> None:
        if name not in self._desired:
            raise NotFound(f"no process named {name} is supervised")
        deadline = None if timeout_seconds is None else self.clock() + timeout_seconds
        while not holds():
            self._check_loop()
            if (failure := self.failure(name)) is not None:
                raise failure
            if name not in self._desired:
                raise NotFound(f"{name} was taken away")
            if deadline is not None and self.clock() >= deadline:
                raise Expired(f"{name} did not {word} within {timeout_seconds:g} s")
            await asyncio.sleep(_TICK_SECONDS)

    def _check_loop(self) -> None:
        if self._loop is None:
            raise ServiceError("the supervisor is not running")
        if self._loop.done():
            self._loop.result()
            raise ServiceError("the supervisor has ended")
