"""Owns what one consumer does when: what it takes first, when it claims, what it keeps waiting.

Knows no server (steps.py) and nothing of what a group contains. The two queues are this one class over two
implementations of the steps.

    take ─┬─ waiting here?     attempted entries that came in one read with others, each returned alone
          ├─ a lease ended?    asked every lease / 5, never within a lease of having connected
          │  (the learner's stage has one fenced reader: it adopts instead, and counts no attempt)
          └─ read what is new  waits here
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from services.common.errors import Corrupted, LostOwnership, TrimtabError
from services.common.stages.base import (
    ATTEMPT_LIMIT,
    LEARNER_STAGE,
    LEASE_SECONDS,
    Advance,
    Entry,
    NewEntry,
    Scan,
)
from services.common.stages.entry import RawEntry, decode, lenient
from services.common.stages.steps import Move, Steps

Clock = Callable[[], float]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    """Entries of one stage that are ours, not yet returned."""

    entries: list[Entry]
    renewed_at: float


class Consumer:
    """StageQueue and LearnerQueue over any Steps. A learner by start_epoch, a plain worker without."""

    def __init__(
        self,
        steps: Steps,
        *,
        lease_seconds: float = LEASE_SECONDS,
        attempt_limit: int = ATTEMPT_LIMIT,
        clock: Clock = time.monotonic,
    ) -> None:
        self.consumer = steps.consumer
        self._steps = steps
        self._lease = lease_seconds
        self._attempt_limit = attempt_limit
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._claim_due: dict[str, float] = {}
        self._joined: set[str] = set()
        # The learner's stage only: what we hold there, and what we own but have not read yet.
        self._holding: set[str] = set()
        self._inherited: deque[tuple[str, int]] = deque()
        self._adopted_at = 0.0

    @property
    def epoch(self) -> int:
        """0 until start_epoch."""
        return self._steps.epoch

    # ------------------------------------------------------------------ taking

    async def take(self, stage: str, *, limit: int, block_seconds: float) -> list[Entry]:
        """See StageQueue.take."""
        deadline = time.monotonic() + block_seconds
        self._joined.add(stage)
        while True:
            left = max(0.0, deadline - time.monotonic())
            entries = await self._take_once(stage, limit, min(left, self._lease / 3))
            if entries or time.monotonic() >= deadline:
                return entries

    async def _take_once(self, stage: str, limit: int, block_seconds: float) -> list[Entry]:
        if waiting := await self._take_waiting(stage, limit):
            return waiting
        if self.epoch and stage == LEARNER_STAGE:
            return await self._take_as_learner(limit, block_seconds)
        if claimed := await self._claim(stage):
            return [claimed]
        return await self._sort(stage, await self._steps.read(stage, limit, block_seconds), limit)

    async def _take_waiting(self, stage: str, limit: int) -> list[Entry]:
        waiting = self._waiting.get(stage)
        if waiting is None:
            return []
        if self._clock() - waiting.renewed_at >= self._lease / 3:
            await self.renew([])
        del self._waiting[stage]
        return self._front(stage, waiting.entries, limit, waiting.renewed_at)

    async def _claim(self, stage: str) -> Entry | None:
        now = self._clock()
        if now < self._claim_due.get(stage, 0.0) or now < self._steps.connected_at + self._lease:
            return None
        raw = await self._steps.claim(stage, self._lease)
        if raw is None:
            self._claim_due[stage] = now + self._lease / 5
            return None
        return next(iter(await self._decode(stage, [raw])), None)

    async def _take_as_learner(self, limit: int, block_seconds: float) -> list[Entry]:
        if self._clock() >= self._adopted_at + self._lease or self._steps.connected_at > self._adopted_at:
            await self._adopt(self._lease)
        if self._inherited:
            ids = list(islice(self._inherited, limit))
            raw = await self._steps.fetch(ids)
            for _ in ids:
                self._inherited.popleft()
            return await self._sort_held(raw, limit)
        raw = await self._steps.read(LEARNER_STAGE, limit, block_seconds)
        # A learner that was replaced while it waited may have been given something: its successor adopts it.
        await self._steps.check()
        self._holding.update(each.entry_id for each in raw)
        return await self._sort_held(raw, limit)

    async def _sort_held(self, raw: Sequence[RawEntry], limit: int) -> list[Entry]:
        """What is not handed out is not held: where a damaged one could not be buried, all are looked for again."""
        try:
            return await self._sort(LEARNER_STAGE, raw, limit)
        except BaseException:
            self._holding.difference_update(each.entry_id for each in raw)
            self._adopted_at = -math.inf
            raise

    async def _adopt(self, idle_seconds: float) -> None:
        began = self._clock()
        found = await self._steps.adopt(idle_seconds)
        self._inherited.extend(each for each in found if each[0] not in self._holding)
        self._holding.update(entry_id for entry_id, _ in found)
        self._adopted_at = began

    async def _sort(self, stage: str, raw: Sequence[RawEntry], limit: int) -> list[Entry]:
        return self._front(stage, await self._decode(stage, raw), limit, self._clock()) if raw else []

    def _front(self, stage: str, entries: list[Entry], limit: int, renewed_at: float) -> list[Entry]:
        """The longest start that may be processed together; the rest waits, its lease being ours."""
        if not entries:
            return []
        clean = next((at for at, entry in enumerate(entries) if entry.attempts), len(entries))
        cut = min(max(clean, 1), limit)
        if cut < len(entries):
            self._waiting[stage] = _Waiting(entries[cut:], renewed_at)
        return entries[:cut]

    async def _decode(self, stage: str, raw: Sequence[RawEntry]) -> list[Entry]:
        entries = []
        for each in raw:
            try:
                entries.append(decode(stage, each))
            except Corrupted as error:
                await self._steps.bury(lenient(stage, each), str(error))
                self._holding.discard(each.entry_id)
                _log.error("entry is damaged, moved to the dead letters", stage=stage, reason=str(error))
        return entries

    # ------------------------------------------------------------------ moving

    async def renew(self, entries: Sequence[Entry]) -> list[bool]:
        """See StageQueue.renew. What waits here is renewed along with them."""
        waiting = self._all_waiting()
        kept = await self._steps.renew([*entries, *waiting])
        lost = {entry.entry_id for entry, ours in zip(waiting, kept[len(entries) :], strict=True) if not ours}
        for each in self._waiting.values():
            each.entries = [entry for entry in each.entries if entry.entry_id not in lost]
            each.renewed_at = self._clock()
        return kept[: len(entries)]

    def _all_waiting(self) -> list[Entry]:
        return [entry for each in self._waiting.values() for entry in each.entries]

    async def advance(self, moves: Sequence[Advance]) -> list[bool]:
        """See StageQueue.advance. The next stage counts its attempts from 0."""
        return await self._steps.move([Move(each.entry, each.destination, 0, each.payload) for each in moves])

    async def hand_back(self, entries: Sequence[tuple[Entry, bytes]]) -> list[bool]:
        """See StageQueue.hand_back."""
        return await self._steps.move(
            [Move(entry, entry.stage, entry.attempts, payload) for entry, payload in entries]
        )

    async def fail(self, entry: Entry, *, payload_if_last: bytes) -> bool:
        """See StageQueue.fail."""
        attempts = entry.attempts + 1
        if attempts >= self._attempt_limit:
            move = Move(entry, LEARNER_STAGE, attempts, payload_if_last)
        else:
            move = Move(entry, entry.stage, attempts, None)
        return (await self._steps.move([move]))[0]

    async def leave(self) -> None:
        """See StageQueue.leave. What waits here unprocessed goes back first."""
        waiting = self._all_waiting()
        self._waiting.clear()
        try:
            await self._steps.move([Move(entry, entry.stage, entry.attempts, None) for entry in waiting])
            await self._steps.leave(sorted(self._joined))
        except TrimtabError as error:
            _log.warning("could not leave the stages; leases will end by themselves", error=str(error))

    async def close(self) -> None:
        """See StageQueue.close."""
        await self._steps.close()

    # ------------------------------------------------------------------ learner

    async def start_epoch(self, *, at_least: int) -> int:
        """See LearnerQueue.start_epoch."""
        epoch = await self._steps.start_epoch(at_least)
        self._waiting.pop(LEARNER_STAGE, None)
        self._holding.clear()
        self._inherited.clear()
        await self._adopt(0.0)
        return epoch

    async def admit(self, stage: str, entries: Sequence[NewEntry]) -> None:
        """See LearnerQueue.admit."""
        self._require_epoch()
        await self._steps.admit(stage, entries)

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See LearnerQueue.acknowledge."""
        self._require_epoch()
        await self._steps.acknowledge(entries)
        self._holding.difference_update(entry.entry_id for entry in entries)

    async def bury(self, entry: Entry, *, reason: str) -> None:
        """See LearnerQueue.bury."""
        self._require_epoch()
        await self._steps.bury(entry, reason)
        self._holding.discard(entry.entry_id)

    async def scan(self) -> Scan:
        """See LearnerQueue.scan."""
        self._require_epoch()
        return await self._steps.scan(self._lease)

    async def restore_sentinel(self) -> None:
        """See LearnerQueue.restore_sentinel. What was held on the emptied server is not ours any more."""
        self._require_epoch()
        await self._steps.restore()

    def _require_epoch(self) -> None:
        if not self.epoch:
            raise LostOwnership("only a learner that has started an epoch may do this")
