"""What the contract tests may do to a queue server besides using it: let leases end, damage, occupy, empty.

Time is a fake clock on the client's side, and idle times are set on the server's side, so that nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import redis

from orchestrator.local.queue_server import QueueServer
from services.common.stages.base import ATTEMPT_LIMIT, LEASE_SECONDS, Entry
from services.common.stages.consumer import Consumer
from services.common.stages.entry import GROUP, RunKeys
from services.common.stages.memory_stages import MemoryServer, MemoryStages, MemoryTools
from services.common.stages.redis_stages import RedisStages
from services.common.stages.tools import RedisTools
from tests.fakes.clock import FakeClock


class Harness(Protocol):
    clock: FakeClock

    def connect(self, consumer: str, stages: Sequence[str] = ()) -> Consumer: ...

    def tools(self) -> RedisTools | MemoryTools: ...

    def silence(self, entries: Sequence[Entry]) -> None:
        """A lease later, with everything renewed but these, if they are still pending."""

    def inject(self, stage: str, fields: dict[bytes, bytes]) -> None:
        """Add an entry as it stands."""

    def entries(self, stage: str) -> dict[str, dict[bytes, bytes]]:
        """All entries of a stage as they stand, by entry id."""

    def occupy(self, stage: str) -> None:
        """Make the stage's key hold something that is no stream."""

    def empty(self) -> None:
        """The server comes back without anything."""

    def consumers(self, stage: str) -> set[str]: ...

    async def close(self) -> None: ...


class MemoryHarness:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.server = MemoryServer(self.clock)

    def connect(self, consumer: str, stages: Sequence[str] = ()) -> Consumer:
        return MemoryStages(self.server, consumer=consumer, stages=stages)

    def tools(self) -> MemoryTools:
        return MemoryTools(self.server)

    def silence(self, entries: Sequence[Entry]) -> None:
        silent = {(entry.stage, int(entry.entry_id.partition("-")[0])) for entry in entries}
        self.clock.advance(LEASE_SECONDS)
        for stage, stream in self.server.streams.items():
            for consumer in stream.consumers:
                stream.consumers[consumer] += LEASE_SECONDS
            for number, pending in stream.pending.items():
                pending.since += LEASE_SECONDS
                if (stage, number) in silent:
                    pending.since = self.clock() - LEASE_SECONDS

    def inject(self, stage: str, fields: dict[bytes, bytes]) -> None:
        flat = [each for pair in fields.items() for each in pair]
        self.server.add(self.server.open(stage).entries, flat)

    def entries(self, stage: str) -> dict[str, dict[bytes, bytes]]:
        return {
            f"{number}-0": dict(zip(flat[::2], flat[1::2], strict=True))
            for number, flat in self.server.streams[stage].entries.items()
        }

    def occupy(self, stage: str) -> None:
        self.server.occupied.add(stage)

    def empty(self) -> None:
        self.server.clear()

    def consumers(self, stage: str) -> set[str]:
        return set(self.server.streams[stage].consumers)

    async def close(self) -> None:
        return


class RedisHarness:
    """One run on a server that other tests use too."""

    def __init__(self, server: QueueServer, run_uid: str) -> None:
        self.clock = FakeClock()
        self.server = server
        self.run_uid = run_uid
        self._keys = RunKeys(run_uid)
        self._opened: list[Consumer | RedisTools] = []
        self.raw: Any = redis.Redis.from_url(server.url)

    def connect(
        self, consumer: str, stages: Sequence[str] = (), *, attempt_limit: int = ATTEMPT_LIMIT
    ) -> Consumer:
        made = RedisStages(
            self.server.url,
            self.run_uid,
            consumer=consumer,
            stages=stages,
            attempt_limit=attempt_limit,
            patience_seconds=10,
            clock=self.clock,
        )
        self._opened.append(made)
        return made

    def tools(self) -> RedisTools:
        made = RedisTools(self.server.url, self.run_uid)
        self._opened.append(made)
        return made

    def silence(self, entries: Sequence[Entry]) -> None:
        self.clock.advance(LEASE_SECONDS)
        for entry in entries:
            key, idle = self._keys.stage(entry.stage), int(LEASE_SECONDS * 1000)
            for pending in self.raw.xpending_range(key, GROUP, entry.entry_id, entry.entry_id, 1):
                self.raw.xclaim(key, GROUP, pending["consumer"], 0, [entry.entry_id], idle=idle, justid=True)

    def inject(self, stage: str, fields: dict[bytes, bytes]) -> None:
        self.raw.xadd(self._keys.stage(stage), fields)
        self.raw.sadd(self._keys.stages, stage)

    def entries(self, stage: str) -> dict[str, dict[bytes, bytes]]:
        return {entry_id.decode(): fields for entry_id, fields in self.raw.xrange(self._keys.stage(stage))}

    def occupy(self, stage: str) -> None:
        self.raw.set(self._keys.stage(stage), "something else")

    def empty(self) -> None:
        self.raw.flushall()
        self.raw.script_flush()

    def consumers(self, stage: str) -> set[str]:
        return {each["name"].decode() for each in self.raw.xinfo_consumers(self._keys.stage(stage), GROUP)}

    async def close(self) -> None:
        for each in self._opened:
            await each.close()
        self.raw.close()
