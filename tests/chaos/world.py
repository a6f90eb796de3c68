"""The run that faults strike: random walks over the local stack, every wire of it through a proxy, and the strokes.

policy ─┐                      ┌─ learner's weights ◀─ link ─ policy, policy-2
…       ├─ link each ─▶ queue ─┘
learner ┘                                 an annotator ─▶ preference ─▶ its database
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak_run import REWARD, spec_of
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from services.common.errors import TrimtabError
from tests.chaos import disk
from tests.chaos.faults import LEARNER, LEASE_SECONDS, PREFERENCE, QUEUE, SERVICES, WEIGHTS, Fault
from tests.chaos.labels import Labels
from tests.chaos.steps import Steps
from tests.fakes.jumping_clock import JumpingClock
from tests.fakes.weight_proxy import HarmfulProxy

# Kills are the point here: none of them is a reason to give a service up.
LIMITS = Limits(
    backoff_first_seconds=0.5, backoff_most_seconds=2.0, fast_failures=1_000_000, same_errors=1_000_000
)
DELAY_SECONDS = 0.05
ANSWERS_LOST = 3
COMPLETIONS = 8
_LOOK_SECONDS = 0.05
_WHOLE = 2**40
"""Logs are judged from their first line on."""


@dataclass(slots=True)
class World:
    """A run and its wires. queue_links: of each service to the queue; weight_links: of each policy to the learner."""

    layout: RunLayout
    stack: Stack
    clock: JumpingClock
    queue_links: dict[str, HarmfulProxy]
    weight_links: dict[str, HarmfulProxy]
    steps: Steps
    labels: Labels
    losses: list[int] = field(default_factory=list)
    """Where the learner's log was each time that the queue server lost everything, bytes."""
    ended_full: list[tuple[str, int, int]] = field(default_factory=list)
    """Who ended by itself under a full disk, and from where to where its log tells of that, bytes."""
    _gone: set[str] = field(default_factory=set)
    _touched: Counter[str] = field(default_factory=Counter)
    """How often a signal went to a process."""

    def pid(self, name: str) -> int | None:
        """Of the process that runs under this name."""
        return next((one.pid for one in self.stack.status() if one.name == name), None)

    async def strike(self, fault: Fault) -> None:
        """Do it, and undo what lasts. What is not there to be struck is left."""
        with contextlib.suppress(ProcessLookupError, TrimtabError):
            await getattr(self, f"_{fault.kind}")(fault)

    async def _kill(self, fault: Fault) -> None:
        self._signal(fault.target, signal.SIGKILL)

    async def _stop(self, fault: Fault) -> None:
        pid = self._signal(fault.target, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def _restart(self, fault: Fault) -> None:
        if fault.target == QUEUE:
            self._signal(QUEUE, signal.SIGTERM)
        elif fault.target not in self._gone:
            self._gone.add(fault.target)
            self._touched[fault.target] += 1
            try:
                await self.stack.remove(fault.target)
                await self.stack.add(fault.target)
            finally:
                self._gone.discard(fault.target)

    async def _cut(self, fault: Fault) -> None:
        link = self.queue_links[fault.target]
        link.away = True
        link.cut()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            link.away = False

    async def _unheard(self, fault: Fault) -> None:
        self.queue_links[fault.target].losses += ANSWERS_LOST

    async def _delay(self, fault: Fault) -> None:
        link = self.weight_links[fault.target]
        link.delay = DELAY_SECONDS
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            link.delay = 0.0

    async def _flip(self, fault: Fault) -> None:
        self.weight_links[fault.target].flips += 1

    async def _twice(self, fault: Fault) -> None:
        self.weight_links[fault.target].doubles += 1

    async def _full(self, fault: Fault) -> None:
        """Who is started meanwhile finds it full too, but for the queue server: one torn write is what it gets."""
        name, log = fault.target, self.layout.log(fault.target)
        first, touched, from_ = self.pid(name), self._touched[name], disk.size_of(log)
        limit = disk.torn_write(self.layout.queue) if name == QUEUE else disk.room_of(log)
        filled, ends = None, time.monotonic() + fault.seconds
        while time.monotonic() < ends:
            now = self.pid(name)
            if now is not None and now != filled and (now == first or name != QUEUE):
                filled = now
                with contextlib.suppress(ProcessLookupError):
                    disk.fill(now, limit)
            await asyncio.sleep(_LOOK_SECONDS)
        if (now := self.pid(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                disk.free(now)
        if name == LEARNER and now != first and first is not None and self._touched[name] == touched:
            self.ended_full.append((name, from_, disk.size_of(log)))

    async def _lose(self, fault: Fault) -> None:
        while self.pid(fault.target) is None:  # noqa: ASYNC110 - the supervisor starts it
            await asyncio.sleep(_LOOK_SECONDS)
        disk.lose(self.layout.queue)
        self.losses.append(disk.size_of(self.layout.log(LEARNER)))
        self._signal(fault.target, signal.SIGKILL)
        disk.lose(self.layout.queue)  # a rewrite of its file may have been going on

    async def _clock(self, fault: Fault) -> None:
        self.clock.jump(fault.size)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.clock.jump(0)

    def _signal(self, target: str, number: signal.Signals) -> int | None:
        """To the process, if it runs; its pid."""
        pid = self.pid(target)
        self._touched[target] += 1
        if pid is not None:
            os.kill(pid, number)
        return pid


@asynccontextmanager
async def _environment(added: dict[str, str]) -> AsyncIterator[None]:
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def world(folder: Path, files: Path, seed: int, say: Callable[[str], None]) -> AsyncIterator[World]:
    """The run, from its beginning to its end; the proxies outlive it."""
    layout, clock = RunLayout.prepare(folder), JumpingClock(folder.with_name(f"{folder.name}.clock"))
    env = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    queue_links = {name: HarmfulProxy() for name in SERVICES}
    weight_links = {name: HarmfulProxy(smallest=500) for name in WEIGHTS}
    links = [*queue_links.values(), *weight_links.values()]
    for link in links:
        await link.open()
    settings: dict[str, dict[str, object]] = {name: {} for name in SERVICES}
    names = (*SERVICES, PREFERENCE)
    stack = Stack(
        layout,
        spec_of(files, seed),
        names,
        settings=settings,
        env=env,
        limits=LIMITS,
        on_event=say,
        log_bytes=_WHOLE,
    )
    server = stack.queue_url.rpartition("@")[2].partition("/")[0]
    for name, link in queue_links.items():
        link.target = server
        queue = {
            # Replicas of a stage are one user, with the rights of its steps alone.
            "url": stack.queue_url_of(name.partition("-")[0]).replace(server, link.address),
            "lease_seconds": LEASE_SECONDS,
            "renew_seconds": 1.0,
        }
        settings[name]["queue"] = queue
    for name, link in weight_links.items():
        link.target = stack.endpoint("learner")
        # Over the wire that is harmed, not through the folder.
        settings[name]["weights"] = {
            "address": link.address,
            "folder": "",
            "deltas": True,
            "stall_seconds": 2.0,
        }
        settings[name]["queue"] = {**settings[name]["queue"], "stage": "policy"}  # type: ignore[dict-item]
    settings["learner"] |= {"weights": {"folder": ""}, "deltas": True}
    settings["reward"]["models"] = [REWARD]
    try:
        # In this process' environment, from which the queue server has its own.
        async with _environment(clock.env if clock.library() else {}), stack:
            labels = Labels(stack.endpoint(PREFERENCE), folder.with_name(f"{folder.name}.labels.jsonl"))
            yield World(layout, stack, clock, queue_links, weight_links, Steps(layout.metrics_file), labels)
    finally:
        for link in links:
            await link.close()
