"""One container of a pod: starts it, asks its probes, starts it anew by the pod's policy, stops it.

waiting ──start──▶ running ──ends, or a probe fails──▶ terminated ──policy, back-off──▶ waiting
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.e2e.node import probes
from tests.e2e.node.environment import Missing
from tests.e2e.node.process import Launch, Process, find_program
from tests.e2e.node.status import ContainerState, restarts_after

Object = Mapping[str, Any]
BACKOFF_FIRST, BACKOFF_MOST, BACKOFF_FORGOTTEN = 10.0, 300.0, 600.0
CANNOT_START = 128
RETRY_SECONDS = 1.0


def now() -> str:
    """As the API writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a container is told by its pod."""

    pod: str
    address: str
    policy: str
    grace: float
    logs: Path
    prepare: Callable[[Object], Any]
    """Awaited before each start: the Launch. Raises Missing."""
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]
    """(type, reason, message)"""


class Container:
    """One of them. `policy` of a sidecar is Always whatever the pod's is."""

    def __init__(self, spec: Object, setting: Setting, restarts: int = 0) -> None:
        self.spec, self.setting = spec, setting
        self.policy = spec.get("restartPolicy") or setting.policy
        self.state = ContainerState(spec["name"], spec.get("image", ""), restarts=restarts)
        self.started = asyncio.Event()
        self._process: Process | None = None
        self._launch: Launch | None = None
        self._stopping = asyncio.Event()
        self._wants_end = ""
        self._ending: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        """Of the present start."""
        return self.setting.logs / self.spec["name"] / f"{self.state.restarts}.log"

    async def run(self) -> None:
        """To its last end."""
        pause = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._once()
            if code is None or self._stopping.is_set() or not restarts_after(self.policy, code):
                return
            lived = time.monotonic() - began
            pause = 0.0 if lived > BACKOFF_FORGOTTEN else pause
            if pause:
                self._wait_for("CrashLoopBackOff", f"back-off {pause:g}s restarting failed container")
                self.setting.event(
                    "Warning", "BackOff", f"Back-off restarting failed container {self.state.name}"
                )
            await self._pause(pause)
            pause = min(max(2 * pause, BACKOFF_FIRST), BACKOFF_MOST)

    async def stop(self, grace: float) -> None:
        """preStop, SIGTERM, and SIGKILL when the grace period is over. Returns once it has ended."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        ends = time.monotonic() + grace
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hook("preStop", process), grace)
        await process.end(ends - time.monotonic())

    def kill(self) -> None:
        """At once."""
        self._stopping.set()
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    async def execute(self, argv: list[str]) -> tuple[int, str]:
        """A command in it."""
        if self._process is None or self._launch is None:
            return 1, "the container does not run"
        return await self._process.execute(argv, self._launch.env, self._launch.uid, self._launch.gid)

    # ------------------------------------------------------------ one life

    async def _once(self) -> int | None:
        """Start, watch, wait: the exit status; None where it was stopped before it began."""
        launch = await self._prepared()
        if launch is None:
            return None
        self._launch = launch
        if find_program(launch.argv[0], launch.env.get("PATH", "")) is None:
            return self._ended(CANNOT_START, "StartError", f"{launch.argv[0]} is not on this node's PATH")
        next_restart = self.state.restarts + (self.state.exit_code is not None)
        process = await Process.start(launch, self.setting.logs / self.spec["name"] / f"{next_restart}.log")
        self._process, self._wants_end = process, ""
        self.state.begin(now(), f"process://{self.setting.pod}/{self.state.name}/{next_restart}")
        self.setting.changed()
        if self._stopping.is_set():
            # It was told to stop while it began, when there was nothing to be told.
            process.signal(signal.SIGKILL)
        watching = asyncio.create_task(self._watch(process))
        try:
            code = await process.wait()
        finally:
            watching.cancel()
            self._process = None
        return self._ended(code, "", self._wants_end)

    async def _prepared(self) -> Launch | None:
        while not self._stopping.is_set():
            try:
                launch: Launch = await self.setting.prepare(self.spec)
            except Missing as error:
                self._wait_for("CreateContainerConfigError", str(error))
                await self._pause(RETRY_SECONDS)
            else:
                return launch
        return None

    def _ended(self, code: int, reason: str, message: str) -> int:
        self.started.clear()
        self.state.end(code, now(), reason, message)
        self.state.waiting = ""
        self.setting.changed()
        if reason:
            self.setting.event("Warning", "Failed", f"Error: {message}")
        return code

    def _wait_for(self, reason: str, message: str) -> None:
        if (self.state.waiting, self.state.message) != (reason, message):
            self.state.waiting, self.state.message = reason, message
            self.setting.changed()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # ------------------------------------------------------------ probes and hooks

    async def _watch(self, process: Process) -> None:
        await self._hook("postStart", process)
        ports = {one["name"]: one["containerPort"] for one in self.spec.get("ports") or () if "name" in one}
        place = probes.Place(self.setting.address, ports, self.execute)
        if "startupProbe" in self.spec:
            begun = asyncio.Event()
            task = asyncio.create_task(
                self._probe("startupProbe", place, lambda ok, why: self._startup(begun, ok, why))
            )
            try:
                await begun.wait()
            finally:
                task.cancel()
        self.state.started = True
        self.started.set()
        self.state.ready = "readinessProbe" not in self.spec
        self.setting.changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe("readinessProbe", place, self._readiness))
            group.create_task(self._probe("livenessProbe", place, self._liveness))

    async def _probe(self, name: str, place: probes.Place, told: Callable[[bool, str], None]) -> None:
        if name in self.spec:
            await probes.watch(probes.Probe.of(self.spec[name]), place, told)

    def _startup(self, begun: asyncio.Event, passed: bool, why: str) -> None:
        if passed:
            begun.set()
        else:
            self._end("startup", why)

    def _readiness(self, passed: bool, why: str) -> None:
        if passed != self.state.ready:
            self.state.ready = passed
            if not passed:
                self.setting.event("Warning", "Unhealthy", f"Readiness probe failed: {why}")
            self.setting.changed()

    def _liveness(self, passed: bool, why: str) -> None:
        # A pod that is being stopped is not killed for not living.
        if not passed and not self._stopping.is_set():
            self._end("liveness", why)

    def _end(self, probe: str, why: str) -> None:
        """Stop this life; the policy decides about another."""
        if self._wants_end or self._process is None:
            return
        self._wants_end = f"{probe} probe failed: {why}"
        self.setting.event("Warning", "Unhealthy", f"{probe.capitalize()} probe failed: {why}")
        self.setting.event(
            "Normal", "Killing", f"Container {self.state.name} failed {probe} probe, will be restarted"
        )
        self._ending = asyncio.create_task(self._process.end(self.setting.grace))

    async def _hook(self, name: str, process: Process) -> None:
        hook = (self.spec.get("lifecycle") or {}).get(name)
        if hook is None:
            return
        why: str | None = None
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            code, output = await self.execute(list(hook["exec"]["command"]))
            why = f"exit status {code}: {output}" if code else None
        elif "httpGet" in hook:
            ports = {
                one["name"]: one["containerPort"] for one in self.spec.get("ports") or () if "name" in one
            }
            place = probes.Place(self.setting.address, ports, self.execute)
            why = await probes.ask(probes.Probe.of({"httpGet": hook["httpGet"], "timeoutSeconds": 10}), place)
        if why is not None:
            self.setting.event("Warning", f"Failed{name[0].upper()}{name[1:]}Hook", why)
            if name == "postStart":
                process.signal(signal.SIGKILL)
