"""A supervisor that was stopped itself, with everything else on the machine, blames nobody for it."""

from __future__ import annotations

import asyncio

from orchestrator.local.health import Health
from orchestrator.local.supervisor import Supervisor
from orchestrator.planning.processes import Limits


class Hanging:
    """A child that served once and never answers again. It is its own probe."""

    name, pid = "one", None

    def __init__(self) -> None:
        self.probe = self
        self.asked = 0
        self.killed = asyncio.Event()

    async def check(self, _seconds: float) -> Health:
        self.asked += 1
        return Health.SERVING if self.asked == 1 else Health.SILENT

    async def close(self) -> None: ...

    def start(self) -> None: ...

    def poll(self) -> int | None:
        return -9 if self.killed.is_set() else None

    def terminate(self) -> None:
        self.killed.set()

    def kill(self) -> None:
        self.killed.set()

    def last_words(self) -> str:
        return ""


async def test_a_pause_is_no_silence() -> None:
    """600 s in which nobody looked kill nobody; 21 s of silence that were looked at do."""
    now, child, told = [0.0], Hanging(), list[str]()
    limits = Limits(silent_seconds=20)
    async with Supervisor(limits=limits, clock=lambda: now[0], on_event=told.append) as supervisor:
        supervisor.want(child)
        await supervisor.until_serving("one", 60)
        now[0] += 600
        await _looked(child, now)
        assert not child.killed.is_set()
        for _ in range(5):
            now[0] += 4
            await _looked(child, now)
        await asyncio.wait_for(child.killed.wait(), 10)
    assert told[0] == "one is killed: its health port was silent for 20 s"


async def _looked(child: Hanging, now: list[float]) -> None:
    """Until it was asked twice more, or is killed; a second goes by in little pieces."""
    wanted = child.asked + 2
    while child.asked < wanted and not child.killed.is_set():
        now[0] += 0.1
        await asyncio.sleep(0.01)
