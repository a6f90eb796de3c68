"""A server whose clock went back: what was taken before has a lease from then on, not until the clock is there again.

On Valkey alone: Debian's Redis does not start under faketime.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.local.queue_server import QueueServer
from services.common.stages.base import LEASE_SECONDS, NewEntry
from services.common.stages.memory_stages import MemoryServer, MemoryStages
from services.common.stages.redis_stages import RedisStages
from tests.fakes.clock import FakeClock
from tests.fakes.jumping_clock import JumpingClock

DAY = 24 * 3600
LEASE = 0.3


@pytest.mark.skipif(JumpingClock.library() is None, reason="Debian's faketime is not installed")
async def test_what_a_dead_worker_took_in_the_future_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken a day ahead by a worker that dies, the clock back at once: another has it a lease later."""
    clock = JumpingClock(tmp_path / "offset")
    with monkeypatch.context() as environment:
        for name, value in clock.env.items():
            environment.setenv(name, value)
        server = QueueServer(tmp_path / "queue")
        server.start()
    try:
        learner = RedisStages(server.url, "run", consumer="learner", stages=("policy",))
        await learner.start_epoch(at_least=0)
        await learner.admit("policy", [NewEntry(group_id="g", payload=b"x", admission_number=0)])
        dead = RedisStages(server.url, "run", consumer="dead", lease_seconds=LEASE)
        clock.jump(DAY)
        assert [entry.group_id for entry in await dead.take("policy", limit=1, block_seconds=5)] == ["g"]
        clock.jump(0)
        other = RedisStages(server.url, "run", consumer="other", lease_seconds=LEASE)
        async with asyncio.timeout(20):
            while not (taken := await other.take("policy", limit=1, block_seconds=LEASE)):
                pass
        assert [(entry.group_id, entry.attempts) for entry in taken] == [("g", 1)]
        for stages in (learner, dead, other):
            await stages.close()
    finally:
        server.stop()


async def test_the_twin_does_the_same() -> None:
    """In memory, by its own clock."""
    clock = FakeClock()
    server = MemoryServer(clock=clock)
    learner = MemoryStages(server, consumer="learner", stages=("policy",))
    await learner.start_epoch(at_least=0)
    await learner.admit("policy", [NewEntry(group_id="g", payload=b"x", admission_number=0)])
    clock.advance(DAY)
    assert await MemoryStages(server, consumer="dead").take("policy", limit=1, block_seconds=0)
    clock.advance(-DAY)
    other = MemoryStages(server, consumer="other")
    waited = 0
    while not (taken := await other.take("policy", limit=1, block_seconds=0)):
        clock.advance(1)
        waited += 1
    assert [entry.group_id for entry in taken] == ["g"]
    assert waited <= 3 * LEASE_SECONDS
