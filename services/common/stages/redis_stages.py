"""Owns how the steps of steps.py are carried out on Redis 7 or Valkey; knows neither policy nor payload.

One EVALSHA moves a whole batch, each entry checked by itself. Only commands of Redis 7.0, every key declared,
all of them under one hash tag.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from services.common.stages import scripts
from services.common.stages.base import (
    ATTEMPT_LIMIT,
    LEARNER_STAGE,
    LEASE_SECONDS,
    Entry,
    NewEntry,
    Scan,
    StageView,
)
from services.common.stages.consumer import Consumer
from services.common.stages.entry import GROUP, NAMES, RawEntry, RunKeys, checksum, encode
from services.common.stages.link import LONGEST_BLOCK_SECONDS, Argument, Link, NoGroupError, Script
from services.common.stages.steps import Move
from services.common.stages.tls_files import TlsFiles

PATIENCE_SECONDS = 60.0
# Bounds of one script call: entries, and bytes of payload, so that no call holds the server for long.
BATCH_ENTRIES = 64
BATCH_BYTES = 16 * 2**20


class RedisStages(Consumer):
    """The stage queue of a run on a Redis 7 or Valkey server.

    `stages` are those a learner creates at its start; a worker joins what it takes from. Errors of the
    connection are retried inside for `patience_seconds`, then raised as Unavailable.
    """

    def __init__(
        self,
        url: str,
        run_uid: str,
        *,
        consumer: str,
        stages: Sequence[str] = (),
        lease_seconds: float = LEASE_SECONDS,
        attempt_limit: int = ATTEMPT_LIMIT,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        tls: TlsFiles | None = None,
    ) -> None:
        link = Link(url, patience_seconds=patience_seconds, clock=clock, tls=tls)
        steps = RedisSteps(link, RunKeys(run_uid), consumer, stages)
        super().__init__(steps, lease_seconds=lease_seconds, attempt_limit=attempt_limit, clock=clock)


class RedisSteps:
    """Steps on a server reached by `link`."""

    def __init__(self, link: Link, keys: RunKeys, consumer: str, stages: Sequence[str] = ()) -> None:
        self.consumer = consumer
        self.epoch = 0
        self._token = uuid.uuid4().hex
        self._link = link
        self._keys = keys
        self._stages = tuple(dict.fromkeys((*stages, LEARNER_STAGE)))

    @property
    def connected_at(self) -> float:
        """See Steps.connected_at."""
        return self._link.connected_at

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        return await self._link.script(script, self._all_keys(keys), self._all_arguments(arguments))

    def _all_keys(self, keys: Sequence[str]) -> Sequence[str]:
        return (self._keys.epoch, self._keys.sentinel, self._keys.stages, *keys)

    def _all_arguments(self, arguments: Sequence[Argument]) -> Sequence[Argument]:
        return (self.epoch, self._token, self.consumer, *arguments)

    async def join(self, stage: str) -> None:
        """See Steps.join."""
        await self._run(scripts.JOIN, [self._keys.stage(stage)])

    async def read(self, stage: str, limit: int, block_seconds: float) -> list[RawEntry]:
        """See Steps.read. Blocks for at most LONGEST_BLOCK_SECONDS."""
        key = self._keys.stage(stage)
        milliseconds = int(min(block_seconds, LONGEST_BLOCK_SECONDS) * 1000)
        # BLOCK 0 would wait for ever.
        block = ("BLOCK", milliseconds) if milliseconds else ()
        command = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", limit, *block, "STREAMS", key, ">")
        try:
            answer = await self._link.blocking(*command)
        except NoGroupError:
            await self.join(stage)
            answer = await self._link.blocking(*command)
        entries = answer[0][1] if answer else []
        return [RawEntry(entry_id.decode(), fields, 1) for entry_id, fields in entries]

    async def claim(self, stage: str, lease_seconds: float) -> RawEntry | None:
        """See Steps.claim."""
        found = await self._link.script_if_connected(
            scripts.CLAIM,
            self._all_keys([self._keys.stage(stage)]),
            self._all_arguments([int(lease_seconds * 1000)]),
        )
        return RawEntry(found[0].decode(), found[1], found[2]) if found else None

    async def move(self, moves: Sequence[Move]) -> list[bool]:
        """See Steps.move."""
        moved: list[bool] = []
        for batch in _batches(moves):
            moved += await self._move_batch(batch)
        return moved

    async def _move_batch(self, moves: Sequence[Move]) -> list[bool]:
        destinations = list(dict.fromkeys(self._keys.stage(move.destination) for move in moves))
        sources = list(dict.fromkeys(self._keys.stage(move.entry.stage) for move in moves))
        arguments: list[Argument] = [len(destinations)]
        for move in moves:
            entry, payload = move.entry, move.payload
            arguments += (
                4 + len(destinations) + sources.index(self._keys.stage(entry.stage)),
                4 + destinations.index(self._keys.stage(move.destination)),
                entry.entry_id,
                entry.deliveries,
                entry.group_id,
                move.attempts,
                0 if payload is None else 1,
                "" if payload is None else checksum(payload, entry.group_id, entry.admission_number),
                payload or b"",
            )
        answer = await self._run(scripts.MOVE, [*destinations, *sources], arguments)
        return [each == 1 for each in answer]

    async def renew(self, entries: Sequence[Entry]) -> list[bool]:
        """See Steps.renew."""
        if not entries:
            return []
        streams = list(dict.fromkeys(self._keys.stage(entry.stage) for entry in entries))
        arguments: list[Argument] = []
        for entry in entries:
            at = 4 + streams.index(self._keys.stage(entry.stage))
            arguments += (at, entry.entry_id, entry.deliveries, entry.group_id)
        answer = await self._run(scripts.RENEW, streams, arguments)
        return [each == 1 for each in answer]

    async def bury(self, entry: Entry, reason: str) -> bool:
        """See Steps.bury."""
        group = entry.group_id.encode(errors="surrogateescape")
        arguments = (entry.entry_id, entry.deliveries, group, entry.stage, reason)
        keys = [self._keys.dead, self._keys.stage(entry.stage)]
        return bool(await self._run(scripts.BURY, keys, arguments))

    async def leave(self, stages: Sequence[str]) -> None:
        """See Steps.leave."""
        await self._run(scripts.LEAVE, [self._keys.stage(stage) for stage in stages])

    async def check(self) -> None:
        """See Steps.check."""
        await self._run(scripts.CHECK, [])

    async def start_epoch(self, at_least: int) -> int:
        """See Steps.start_epoch."""
        streams = [self._keys.stage(stage) for stage in self._stages]
        self.epoch = int(await self._run(scripts.START_EPOCH, streams, [at_least]))
        return self.epoch

    async def restore(self) -> None:
        """See Steps.restore."""
        await self._run(scripts.RESTORE, [self._keys.stage(stage) for stage in self._stages])

    async def admit(self, stage: str, entries: Sequence[NewEntry]) -> None:
        """See Steps.admit."""
        for at in range(0, len(entries), BATCH_ENTRIES):
            arguments: list[Argument] = [uuid.uuid4().hex, 2 * len(NAMES)]
            for entry in entries[at : at + BATCH_ENTRIES]:
                arguments += encode(entry)
            await self._run(scripts.ADMIT, [self._keys.admitted, self._keys.stage(stage)], arguments)

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See Steps.acknowledge."""
        for at in range(0, len(entries), BATCH_ENTRIES):
            arguments: list[Argument] = []
            for entry in entries[at : at + BATCH_ENTRIES]:
                arguments += (entry.entry_id, entry.group_id)
            await self._run(scripts.ACKNOWLEDGE, [self._keys.stage(LEARNER_STAGE)], arguments)

    async def adopt(self, idle_seconds: float) -> list[tuple[str, int]]:
        """See Steps.adopt."""
        found = await self._run(scripts.ADOPT, [self._keys.stage(LEARNER_STAGE)], [int(idle_seconds * 1000)])
        return [(entry_id.decode(), count) for entry_id, count in zip(found[::2], found[1::2], strict=True)]

    async def fetch(self, ids: Sequence[tuple[str, int]]) -> list[RawEntry]:
        """See Steps.fetch."""
        deliveries = dict(ids)
        found = await self._run(scripts.FETCH, [self._keys.stage(LEARNER_STAGE)], [*deliveries])
        raw = [(entry_id.decode(), fields) for entry_id, fields in found]
        return [RawEntry(entry_id, fields, deliveries[entry_id]) for entry_id, fields in raw]

    async def scan(self, lease_seconds: float) -> Scan:
        """See Steps.scan. Asks again where a stage was added between naming and looking."""
        while True:
            members = await self._link.command("SMEMBERS", self._keys.stages)
            stages = sorted(member.decode() for member in members)
            keys = [self._keys.stage(stage) for stage in stages]
            answer = await self._run(scripts.SCAN, keys, [int(lease_seconds * 1000)])
            if answer is not None:
                views = tuple(_view(*pair) for pair in zip(stages, answer[1:], strict=True))
                return Scan(stages=views, sentinel=answer[0] == 1)

    async def close(self) -> None:
        """See Steps.close."""
        await self._link.close()


def _view(stage: str, answer: Sequence[Any]) -> StageView:
    length, pending, alive, *groups = answer
    group_ids = frozenset(group.decode(errors="replace") for group in groups)
    return StageView(stage=stage, length=length, pending=pending, consumers=alive, group_ids=group_ids)


def _batches(moves: Sequence[Move]) -> Iterator[Sequence[Move]]:
    """Runs of at most BATCH_ENTRIES moves and (but for a single larger one) BATCH_BYTES of payload."""
    start, size = 0, 0
    for at, move in enumerate(moves):
        length = len(move.payload or b"")
        if at > start and (at - start == BATCH_ENTRIES or size + length > BATCH_BYTES):
            yield moves[start:at]
            start, size = at, 0
        size += length
    if start < len(moves):
        yield moves[start:]
