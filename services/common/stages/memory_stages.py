"""Owns the twin of the queue: the same steps over dictionaries of this process; knows no policy.

For `trimtab train --in-process` and for tests. Consumers that share one MemoryServer share its streams, as
they would on a real server; a step never awaits between its first look and its last write, which makes it
atomic here. Time is the server's clock; only a blocking read waits in real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.common.errors import Corrupted, LostOwnership, Unavailable
from services.common.stages.base import (
    ATTEMPT_LIMIT,
    LEARNER_STAGE,
    LEASE_SECONDS,
    DeadLetter,
    Entry,
    NewEntry,
    Scan,
    StageView,
)
from services.common.stages.consumer import Consumer
from services.common.stages.entry import (
    NAMES,
    REQUEUED,
    RawEntry,
    checked_stage,
    checksum,
    encode,
    read_letter,
)
from services.common.stages.steps import Move

_SILENT_LEASES = 10


@dataclass(slots=True)
class _Pending:
    """Who has an entry, how often it was delivered, since when by the server's clock."""

    consumer: str
    deliveries: int
    since: float


@dataclass(slots=True)
class _Stream:
    """A stream with its one consumer group. Entries stand in order of their numbers."""

    entries: dict[int, list[bytes]] = field(default_factory=dict)
    pending: dict[int, _Pending] = field(default_factory=dict)
    consumers: dict[str, float] = field(default_factory=dict)
    delivered_up_to: int = 0


class MemoryServer:
    """What the consumers of one run share. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._changed = asyncio.Event()
        self._last_number = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything, as a server that lost its disk."""
        self.epoch: int | None = None
        self.token: str | None = None
        self.streams: dict[str, _Stream] = {}
        self.dead: dict[int, list[bytes]] = {}
        # Keys of another type, for tests: a stage of this name cannot be written.
        self.occupied: set[str] = set()

    def open(self, stage: str) -> _Stream:
        """The stream of a stage, new if absent. Raises Corrupted where the key is of another type."""
        if stage in self.occupied:
            raise Corrupted(f"stage {stage} holds a string, not a stream")
        return self.streams.setdefault(checked_stage(stage), _Stream())

    def add(self, entries: dict[int, list[bytes]], fields: list[bytes]) -> None:
        """Append to a stream or the dead letters and wake whoever waits."""
        self._last_number += 1
        entries[self._last_number] = fields
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_seconds: float) -> None:
        """Return after the next addition or after so many real seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_seconds)


class MemoryStages(Consumer):
    """The stage queue over a MemoryServer; the very policy of RedisStages."""

    def __init__(
        self,
        server: MemoryServer,
        *,
        consumer: str,
        stages: Sequence[str] = (),
        lease_seconds: float = LEASE_SECONDS,
        attempt_limit: int = ATTEMPT_LIMIT,
    ) -> None:
        steps = MemorySteps(server, consumer, stages)
        super().__init__(steps, lease_seconds=lease_seconds, attempt_limit=attempt_limit, clock=server.clock)


class MemorySteps:
    """Steps on a MemoryServer."""

    def __init__(self, server: MemoryServer, consumer: str, stages: Sequence[str] = ()) -> None:
        self.consumer = consumer
        self.epoch = 0
        self.connected_at = server.clock()
        self._server = server
        self._token = uuid.uuid4().hex
        self._stages = tuple(dict.fromkeys((*stages, LEARNER_STAGE)))

    def _fence(self) -> None:
        if not self.epoch:
            return
        server = self._server
        if server.epoch is None or server.token is None:
            raise Unavailable("the server came back empty: scan, then restore the sentinel")
        if (server.epoch, server.token) != (self.epoch, self._token):
            raise LostOwnership(f"another learner began epoch {server.epoch}; this one is {self.epoch}")

    def _owned(self, entry: Entry) -> list[bytes] | None:
        """The entry's fields if this consumer still owns it."""
        stream = self._server.streams.get(entry.stage)
        number = _number(entry.entry_id)
        if stream is None or number not in stream.pending or number not in stream.entries:
            return None
        pending, fields = stream.pending[number], stream.entries[number]
        if (pending.consumer, pending.deliveries) != (self.consumer, entry.deliveries):
            return None
        group_id = entry.group_id.encode(errors="surrogateescape")
        return fields if _get(fields, b"group_id") == group_id else None

    def _deliver(self, stream: _Stream, number: int, deliveries: int) -> RawEntry:
        stream.pending[number] = _Pending(self.consumer, deliveries, self._server.clock())
        return RawEntry(_entry_id(number), stream.entries[number], deliveries)

    async def join(self, stage: str) -> None:
        """See Steps.join."""
        self._fence()
        self._server.open(stage)

    async def read(self, stage: str, limit: int, block_seconds: float) -> list[RawEntry]:
        """See Steps.read."""
        found = self._read(stage, limit)
        if not found and block_seconds > 0:
            await self._server.changed(block_seconds)
            found = self._read(stage, limit)
        return found

    def _read(self, stage: str, limit: int) -> list[RawEntry]:
        stream = self._server.open(stage)
        stream.consumers[self.consumer] = self._server.clock()
        numbers = [number for number in stream.entries if number > stream.delivered_up_to][:limit]
        if numbers:
            stream.delivered_up_to = numbers[-1]
        return [self._deliver(stream, number, 1) for number in numbers]

    async def claim(self, stage: str, lease_seconds: float) -> RawEntry | None:
        """See Steps.claim."""
        self._fence()
        stream = self._server.streams.get(stage)
        if stream is None:
            return None
        now = self._server.clock()
        for number, pending in sorted(stream.pending.items()):
            if now - pending.since >= lease_seconds:
                stream.consumers[self.consumer] = now
                return self._deliver(stream, number, pending.deliveries + 1)
        for pending in stream.pending.values():
            pending.since = min(pending.since, now)  # the clock may have gone back
        holders = {pending.consumer for pending in stream.pending.values()} | {self.consumer}
        for consumer, seen in list(stream.consumers.items()):
            if consumer not in holders and now - seen > _SILENT_LEASES * lease_seconds:
                del stream.consumers[consumer]
        return None

    async def move(self, moves: Sequence[Move]) -> list[bool]:
        """See Steps.move."""
        self._fence()
        for move in moves:
            self._server.open(move.destination)
        return [self._move(move) for move in moves]

    def _move(self, move: Move) -> bool:
        fields = self._owned(move.entry)
        if fields is None:
            return False
        new = {b"attempts": b"%d" % move.attempts}
        if move.payload is not None:
            check = checksum(move.payload, move.entry.group_id, move.entry.admission_number)
            new |= {b"checksum": check.encode(), b"payload": move.payload}
        self._server.add(self._server.open(move.destination).entries, _replaced(fields, new))
        self._remove(move.entry.stage, move.entry.entry_id)
        return True

    def _remove(self, stage: str, entry_id: str) -> None:
        stream, number = self._server.streams[stage], _number(entry_id)
        stream.pending.pop(number, None)
        stream.entries.pop(number, None)

    async def renew(self, entries: Sequence[Entry]) -> list[bool]:
        """See Steps.renew."""
        self._fence()
        return [self._renew(entry) for entry in entries]

    def _renew(self, entry: Entry) -> bool:
        if self._owned(entry) is None:
            return False
        stream = self._server.streams[entry.stage]
        stream.pending[_number(entry.entry_id)].since = self._server.clock()
        stream.consumers[self.consumer] = self._server.clock()
        return True

    async def bury(self, entry: Entry, reason: str) -> bool:
        """See Steps.bury."""
        self._fence()
        fields = self._owned(entry)
        if fields is None:
            return False
        why = [b"stage", entry.stage.encode(), b"reason", reason.encode()]
        self._server.add(self._server.dead, [*why, *fields])
        self._remove(entry.stage, entry.entry_id)
        return True

    async def leave(self, stages: Sequence[str]) -> None:
        """See Steps.leave."""
        self._fence()
        for stage in stages:
            stream = self._server.streams.get(stage)
            if stream and all(each.consumer != self.consumer for each in stream.pending.values()):
                stream.consumers.pop(self.consumer, None)

    async def check(self) -> None:
        """See Steps.check."""
        self._fence()

    async def start_epoch(self, at_least: int) -> int:
        """See Steps.start_epoch."""
        for stage in self._stages:
            self._server.open(stage)
        self.epoch = max(self._server.epoch or 0, at_least) + 1
        self._server.epoch, self._server.token = self.epoch, self._token
        return self.epoch

    async def restore(self) -> None:
        """See Steps.restore."""
        server = self._server
        if server.token not in {None, self._token} or (server.epoch or 0) > self.epoch:
            raise LostOwnership(f"another learner has begun; this one is of epoch {self.epoch}")
        for stage in self._stages:
            server.open(stage)
        server.epoch, server.token = self.epoch, self._token

    async def admit(self, stage: str, entries: Sequence[NewEntry]) -> None:
        """See Steps.admit."""
        self._fence()
        stream = self._server.open(stage)
        for entry in entries:
            self._server.add(stream.entries, encode(entry))

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See Steps.acknowledge."""
        self._fence()
        stream = self._server.streams.get(LEARNER_STAGE, _Stream())
        for entry in entries:
            fields = stream.entries.get(_number(entry.entry_id), [])
            if _get(fields, b"group_id") == entry.group_id.encode():
                self._remove(LEARNER_STAGE, entry.entry_id)

    async def adopt(self, idle_seconds: float) -> list[tuple[str, int]]:
        """See Steps.adopt."""
        self._fence()
        stream = self._server.streams.get(LEARNER_STAGE, _Stream())
        now = self._server.clock()
        for pending in stream.pending.values():
            if pending.consumer != self.consumer and now - pending.since >= idle_seconds:
                pending.consumer, pending.since = self.consumer, now
        return [
            (_entry_id(number), pending.deliveries)
            for number, pending in sorted(stream.pending.items())
            if pending.consumer == self.consumer
        ]

    async def fetch(self, ids: Sequence[tuple[str, int]]) -> list[RawEntry]:
        """See Steps.fetch."""
        self._fence()
        entries = self._server.streams.get(LEARNER_STAGE, _Stream()).entries
        return [
            RawEntry(entry_id, entries[_number(entry_id)], deliveries)
            for entry_id, deliveries in ids
            if _number(entry_id) in entries
        ]

    async def scan(self, lease_seconds: float) -> Scan:
        """See Steps.scan."""
        sentinel = self._server.epoch is not None and self._server.token is not None
        if sentinel:
            self._fence()
        return _scan(self._server, lease_seconds, sentinel)

    async def close(self) -> None:
        """See Steps.close."""


class MemoryTools:
    """QueueTools over a MemoryServer."""

    def __init__(self, server: MemoryServer, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._server = server
        self._lease = lease_seconds

    async def view(self) -> Scan:
        """See QueueTools.view."""
        sentinel = self._server.epoch is not None and self._server.token is not None
        return _scan(self._server, self._lease, sentinel)

    async def dead_letters(self, *, limit: int) -> list[DeadLetter]:
        """See QueueTools.dead_letters."""
        letters = list(self._server.dead.items())[:limit]
        return [read_letter(_entry_id(number), fields) for number, fields in letters]

    async def requeue(self, letter_id: str) -> bool:
        """See QueueTools.requeue."""
        number = _number(letter_id)
        fields = self._server.dead.get(number)
        if fields is None:
            return False
        stream = self._server.open(read_letter(letter_id, fields).stage)
        # The first two fields say where it died and why.
        self._server.add(stream.entries, _replaced(fields[4:], {b"attempts": b"0", REQUEUED: b"1"}))
        del self._server.dead[number]
        return True

    async def forget(self) -> int:
        """See QueueTools.forget."""
        server = self._server
        noted = (server.dead, server.epoch is not None, server.token is not None)
        removed = len(server.streams) + sum(map(bool, noted))
        server.clear()
        return removed

    async def close(self) -> None:
        """Nothing to let go of."""


def _scan(server: MemoryServer, lease_seconds: float, sentinel: bool) -> Scan:
    now = server.clock()
    views = [
        StageView(
            stage=stage,
            length=len(stream.entries),
            pending=len(stream.pending),
            consumers=sum(now - seen < lease_seconds for seen in stream.consumers.values()),
            group_ids=frozenset(
                _get(fields, b"group_id").decode(errors="replace") for fields in stream.entries.values()
            ),
        )
        for stage, stream in sorted(server.streams.items())
    ]
    return Scan(stages=tuple(views), sentinel=sentinel)


def _get(fields: Sequence[bytes], name: bytes) -> bytes:
    if fields[::2] == NAMES:
        return fields[2 * NAMES.index(name) + 1]
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(name, b"")


def _replaced(fields: Sequence[bytes], new: dict[bytes, bytes]) -> list[bytes]:
    values = dict(zip(fields[::2], fields[1::2], strict=False)) | new
    return [each for pair in values.items() for each in pair]


def _entry_id(number: int) -> str:
    return f"{number}-0"


def _number(entry_id: str) -> int:
    head = entry_id.partition("-")[0]
    return int(head) if head.isdigit() else 0
