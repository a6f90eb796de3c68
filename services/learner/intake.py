"""The groups in flight: admitted, received, sorted, put together into batches, acknowledged.

    admit ─▶ (stages) ─▶ take ─▶ receive ─┬─▶ arrived ─▶ batch ─▶ trained ─▶ acknowledged
      ▲                                   ├─ stale, failed, undigestible ─┐
      └──────── re-admitted ◀─────────────┴─ lost: gone from every stage ─┘

Owns the ledger and which versions may still be used; knows no model, no optimiser and no file.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
from google.protobuf.message import DecodeError

from services.common import tracing
from services.common.errors import (
    Corrupted,
    Mismatch,
    ServiceError,
    TrimtabError,
    Unavailable,
)
from services.common.spec.run import RunSpec
from services.common.stages.base import LEARNER_STAGE, Entry, LearnerQueue, NewEntry
from services.learner.admission import DataOrder, Versions, room
from services.learner.ended import GroupName
from services.learner.ledger import Admitted, Ledger
from services.learner.prompts import Prompt
from services.learner.rollouts import digests_of, new_group, samples_of, versions_of
from services.learner.sample import Sample
from services.models.manifest import Version
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

_TAKE_SECONDS = 0.5
# Beyond it the seeds of a run's groups would meet those of other runs (rollouts.new_group).
_NUMBERS = 2**32
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Arrived:
    """A group that can be trained on."""

    entry: Entry
    group: RolloutGroup
    samples: list[Sample]


class Intake:
    """One learner's rollouts, between its prompts and its batches. Everything runs on one event loop."""

    def __init__(
        self,
        spec: RunSpec,
        *,
        run_uid: str,
        prompts: list[Prompt],
        queue: LearnerQueue,
        watch_seconds: float,
        vocabulary_size: int = 0,
    ) -> None:
        """vocabulary_size: of the model, token ids beyond it are refused; 0 where that is not known."""
        self.ledger = Ledger()
        self.warnings: list[str] = []
        # Without their payloads, which stay on the stream until a checkpoint covers them.
        self.unacknowledged: list[Entry] = []
        self.unacknowledged_bytes = 0
        self._spec, self._run_uid, self._prompts = spec, run_uid, prompts
        self._queue, self._watch_seconds = queue, watch_seconds
        self._vocabulary_size = vocabulary_size
        self._versions = Versions({}, self._remembered)
        self._version: Version | None = None
        self._order = DataOrder(len(prompts), spec.seed, spec.data.shuffle)
        self._step, self._failed_in_a_row = 0, 0
        # Taken from the queue and not looked at yet: an error on the way must not lose the rest of a take.
        self._taken: deque[Entry] = deque()
        self._arrived: dict[str, Arrived] = {}
        # Given to a queue that was away: a look at the stages tells which of them it has.
        self._unsent: set[str] = set()
        self._looked_at = time.monotonic()

    @property
    def _remembered(self) -> int:
        return max(64, self._spec.rollout.max_staleness + 2)

    # ------------------------------------------------------------ what the run tells it

    def published(self, version: Version, step: int) -> None:
        """From now on groups are admitted under this version and judged at this step."""
        self._version, self._step = version, step
        self._versions.publish(Version(version.epoch, step, version.digest))

    def trained(self, batch: list[Arrived]) -> None:
        """These have been learnt from; they are acknowledged once a checkpoint covers them."""
        self.warnings = []
        for one in batch:
            self.ledger.end(one.entry.group_id, "trained")
            self._used(one.entry)

    def _used(self, entry: Entry) -> None:
        self.unacknowledged.append(replace(entry, payload=b""))
        self.unacknowledged_bytes += len(entry.payload)

    def staleness(self, group: RolloutGroup) -> int | None:
        """Steps that the oldest weights of the group are behind; None where they are not known here."""
        return self._versions.staleness(digests_of(group), self._step)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, as JSON."""
        return {
            "position": self._order.position,
            "ledger": self.ledger.state(),
            "versions": list(self._versions.step_of.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises Mismatch where the prompt file has become too short."""
        self.ledger = Ledger.of(state["ledger"])
        self._versions = Versions(dict(state["versions"]), self._remembered)
        self._order.position = int(state["position"])
        self._check_prompts(self.ledger.in_flight.values())

    async def settle(self, *, resumed: bool) -> None:
        """After a start: what the queue holds and the ledger does not know was admitted after the checkpoint."""
        scan = await self._queue.scan()
        unknown = sorted(
            (
                admitted
                for group_id in scan.group_ids - set(self.ledger.in_flight)
                if not self.ledger.has_ended(group_id) and (admitted := self._told(group_id))
            ),
            key=lambda one: one.number,
        )
        if unknown:
            _log.info("groups admitted after the checkpoint are taken over", groups=len(unknown))
        passed = self._adopt(unknown)
        if missing := self.ledger.close_gaps():
            _log.error("groups were lost with the queue and the learner before this one", groups=missing)
        if resumed:
            await self._readmit_lost(scan.group_ids)
        if passed:
            await self._send([self._new(index) for index in passed])

    def _told(self, group_id: str) -> Admitted | None:
        """What a group's name says; None for a name that is damaged or forged, whose entry is buried once it comes."""
        try:
            return self._named(group_id)
        except (ValueError, Corrupted) as error:
            _log.error("a group in the queue is nobody's", group_id=group_id[:60], why=str(error))
            return None

    def _adopt(self, unknown: list[Admitted]) -> list[int]:
        """Take over what was admitted after the checkpoint, by number; prompts among them of which no group is left.

        Each stands for the next prompt of the data order or, where that is another's, for a prompt admitted again. As
        many prompts may come before it as numbers are missing: their groups were buried or lost.
        """
        self._check_prompts(unknown)
        gone, passed = 0, list[int]()
        for one in unknown:
            gone += max(0, one.number - self.ledger.next_number)
            before = self._order.take_up(one.prompt_index, within=self._may_pass(one, gone))
            if before is None:
                self.ledger.adopt(self._again(one))
            else:
                gone, passed = gone - len(before), passed + before
                self.ledger.adopt(one)
        standing = {one.prompt_index for one in self.ledger.in_flight.values()}
        return [index for index in passed if index not in standing]

    def _may_pass(self, admitted: Admitted, gone: int) -> int:
        """Prompts that may stand before it; none where it rather stands for a group in flight."""
        if any(one.prompt_index == admitted.prompt_index for one in self.ledger.in_flight.values()):
            return 0
        rollout = self._spec.rollout
        return min(gone, room(rollout, in_flight=0, steps_left=self._spec.steps))

    def _again(self, admitted: Admitted) -> Admitted:
        """It stands for the newest group in flight of its prompt, if there is one; that is not admitted twice."""
        same = [one for one in self.ledger.in_flight.values() if one.prompt_index == admitted.prompt_index]
        before = max(same, key=lambda one: one.number, default=None)
        if before is None:
            return admitted
        return replace(admitted, tries=before.tries + 1, replaces=before.group_id)

    async def acknowledge(self) -> None:
        """A checkpoint covers everything that has been used so far. Raises Unavailable; then the next one does."""
        covered, covered_bytes = len(self.unacknowledged), self.unacknowledged_bytes
        await self._queue.acknowledge(self.unacknowledged[:covered])
        self.unacknowledged = self.unacknowledged[covered:]
        self.unacknowledged_bytes -= covered_bytes

    def _check_prompts(self, needed: Iterable[Admitted]) -> None:
        beyond = max((one.prompt_index for one in needed), default=0)
        if beyond >= len(self._prompts):
            raise Mismatch(
                f"{self._spec.data.prompts}: the run still needs prompt {beyond + 1}, the file has "
                f"{len(self._prompts)}: it is not the one that the run began with"
            )

    # ------------------------------------------------------------ batches

    async def batch(self, interrupted: Callable[[], bool]) -> list[Arrived] | None:
        """A step's groups, lowest numbers first; None once `interrupted` says so.

        Raises ServiceError when one group after another fails: waiting would not help.
        """
        while True:
            await self.mending(self._drop_stale)
            batch = self._whole_batch()
            if batch is not None:
                break
            if interrupted():
                return None
            await self.mending(self._fill_and_take)
        for one in batch:
            del self._arrived[one.entry.group_id]
        return batch

    async def mending(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something with the queue; where it is away or came back empty, a look at all stages mends that."""
        try:
            await work()
        except Unavailable as error:
            _log.warning("the queue did not answer", error=str(error))
            await self._look_after(at_once=True)

    def _whole_batch(self) -> list[Arrived] | None:
        """The lowest numbers that arrived, if they are enough and nothing before them must be waited for.

        That is: a group still on its way which would be too stale at the next step. Without staleness the
        batch is so exactly what was admitted for the step.
        """
        wanted, bound = self._spec.rollout.batch_groups, self._spec.rollout.max_staleness
        usable = [one for one in self._arrived.values() if self._is_usable(one.group)]
        batch = sorted(usable, key=lambda one: one.entry.admission_number)[:wanted]
        if len(batch) < wanted:
            return None
        last = batch[-1].entry.admission_number
        for one in self.ledger.in_flight.values():
            if one.number < last and one.step + bound <= self._step and one.group_id not in self._arrived:
                return None
        return batch

    def _is_usable(self, group: RolloutGroup) -> bool:
        staleness = self.staleness(group)
        return staleness is not None and staleness <= self._spec.rollout.max_staleness

    async def _drop_stale(self) -> None:
        """What waited here while a step was done may have become too old."""
        for one in [one for one in self._arrived.values() if not self._is_usable(one.group)]:
            del self._arrived[one.entry.group_id]
            await self._end_stale(one.entry, one.group)

    async def _fill_and_take(self) -> None:
        await self._admit()
        limit = self._spec.rollout.batch_groups
        entries = await self._queue.take(LEARNER_STAGE, limit=limit, block_seconds=_TAKE_SECONDS)
        self._taken.extend(entries)
        while self._taken:
            await self._receive(self._taken[0])
            self._taken.popleft()
        if not entries:
            await self._look_after()

    # ------------------------------------------------------------ admission

    async def _admit(self) -> None:
        """Fill up to the bound, on the first stage of the slip."""
        left = self._spec.steps - self._step
        count = room(self._spec.rollout, in_flight=len(self.ledger.in_flight), steps_left=left)
        if count:
            await self._send([self._new(self._order.take()) for _ in range(count)])

    def _new(self, index: int, *, tries: int = 0, replaces: str = "") -> Admitted:
        group_id = str(GroupName(self._queue.epoch, self.ledger.next_number, index))
        return self.ledger.admit(index, group_id, tries=tries, replaces=replaces, step=self._step)

    async def _send(self, admitted: list[Admitted]) -> None:
        ids = {one.group_id for one in admitted}
        self._unsent |= ids
        await self._queue.admit(self._spec.rollout.slip[0], self._entries(admitted))
        self._unsent -= ids

    def _entries(self, admitted: list[Admitted]) -> list[NewEntry]:
        version = self._version
        assert version is not None  # noqa: S101 - the run publishes before it asks for a batch
        entries = []
        for one in admitted:
            prompt = self._prompts[one.prompt_index]
            group = new_group(
                one, prompt, self._spec, run_uid=self._run_uid, version=version, step=self._step
            )
            entries.append(
                NewEntry(
                    group_id=one.group_id,
                    admission_number=one.number,
                    payload=group.SerializeToString(),
                    traceparent=tracing.begun("admit", group=one.group_id),
                )
            )
        return entries

    # ------------------------------------------------------------ what comes back

    async def _receive(self, entry: Entry) -> None:
        """Sort what was taken: used already, here already, undigestible, failed, stale, or good."""
        if entry.requeued and await self._goes_back(entry):
            return
        known = entry.group_id in self.ledger.in_flight
        # A queue server that lost its last second may bring a group twice.
        if entry.group_id in self._arrived or (not known and self.ledger.has_ended(entry.group_id)):
            _log.info("a group came again that was used", group_id=entry.group_id)
            self._used(entry)
            return
        try:
            group = RolloutGroup.FromString(entry.payload)
            failed = group.HasField("failure")
            if not failed:
                _check_name(group, entry)
            if not known:
                self._take_up(self._named(entry.group_id))
            claimed = versions_of(group)
            usable = not failed and self._is_usable(group)
            samples = samples_of(group, self._spec, self._vocabulary_size) if usable else []
        except (DecodeError, TrimtabError, ValueError) as error:
            await self._bury(entry, " ".join(str(error).split()))
            return
        for version in claimed:
            self._versions.check(version)
        if failed:
            await self._end(entry, "failed", f"{group.failure.origin}: {group.failure.message}")
        elif not usable:
            await self._end_stale(entry, group)
        else:
            self._failed_in_a_row = 0
            self._arrived[entry.group_id] = Arrived(entry, group, samples)

    async def _goes_back(self, entry: Entry) -> bool:
        """A person put it back from the dead letters: if it was given up it is in flight again, else it goes back."""
        group_id, in_flight = entry.group_id, self.ledger.in_flight
        if group_id in in_flight or not self.ledger.has_ended(group_id, ("failed",)):
            return False
        if self.ledger.reopen(group_id, tries=self._spec.rollout.readmission_limit):
            _log.info("a group that was given up is taken up again", group_id=group_id)
            return False
        by = [f" as {one.group_id}" for one in in_flight.values() if one.replaces == group_id]
        await self._queue.bury(entry, reason=f"its prompt was admitted again{''.join(by)}")
        return True

    def _take_up(self, admitted: Admitted) -> None:
        self._check_prompts([admitted])
        self.ledger.adopt(admitted)

    def _named(self, group_id: str) -> Admitted:
        """What the name of a group says that the ledger does not know: enough to admit its prompt again.

        Raises ValueError for an id that no learner gave, Corrupted for one that none before this one can have given.
        """
        name = GroupName.of(group_id)
        if name.epoch >= self._queue.epoch or name.number >= _NUMBERS:
            raise Corrupted(f"no learner before epoch {self._queue.epoch} admitted a group {group_id[:60]!r}")
        return Admitted(group_id, name.number, name.prompt_index, 0)

    async def _end_stale(self, entry: Entry, group: RolloutGroup) -> None:
        behind = self.staleness(group)
        why = "made by weights that are not known here" if behind is None else f"{behind} steps behind"
        await self._end(entry, "stale", why)

    async def _end(self, entry: Entry, how: Literal["stale", "failed"], why: str) -> None:
        self._used(entry)
        _log.warning("group is not trained on", group_id=entry.group_id, how=how, why=why)
        ended = self.ledger.end(entry.group_id, how)
        if how == "failed":
            self._note_failure(why)
        await self._replace(ended)

    async def _bury(self, entry: Entry, why: str) -> None:
        """What nobody can digest is kept for a person to look at, and counted as failed."""
        _log.error("group goes to the dead letters", group_id=entry.group_id, why=why)
        await self._queue.bury(entry, reason=why)
        ended = self.ledger.end(entry.group_id, "failed")
        self._note_failure(f"learner: {why}")
        await self._replace(ended)

    def _note_failure(self, why: str) -> None:
        """Tell it; a run in which nothing but failures arrives ends here, not never."""
        self.warnings = [f"a group failed: {why}"]
        self._failed_in_a_row += 1
        bound = self._spec.rollout.batch_groups * (self._spec.rollout.readmission_limit + 1)
        if self._failed_in_a_row >= bound:
            raise ServiceError(f"{self._failed_in_a_row} groups failed in a row, the last at {why}")

    async def _replace(self, ended: Admitted | None) -> None:
        """Admit the prompt again, or give it up after readmission_limit tries; a new prompt then fills up."""
        if ended is None:
            return
        if any(one.replaces == ended.group_id for one in self.ledger.in_flight.values()):
            return  # A learner before this one did, after its last checkpoint.
        if ended.tries >= self._spec.rollout.readmission_limit:
            _log.error("prompt is given up", prompt_index=ended.prompt_index, tries=ended.tries + 1)
            self.ledger.give_up(ended.group_id)
            return
        await self._send([self._new(ended.prompt_index, tries=ended.tries + 1, replaces=ended.group_id)])

    # ------------------------------------------------------------ what does not come back

    async def _look_after(self, *, at_once: bool = False) -> None:
        """While nothing arrives: is anything lost, is anybody working?"""
        if not at_once and time.monotonic() - self._looked_at < self._watch_seconds:
            return
        self._looked_at = time.monotonic()
        try:
            scan = await self._queue.scan()
            if not scan.sentinel:
                _log.error("the queue server came back empty", in_flight=len(self.ledger.in_flight))
                await self._queue.restore_sentinel()
            await self._readmit_lost(scan.group_ids)
        except Unavailable as error:
            _log.warning("the queue is away", error=str(error))
            self.warnings = ["the queue is away"]
            await asyncio.sleep(_TAKE_SECONDS)
            return
        self.warnings = [
            f"no worker on stage {view.stage}: {view.length} groups wait"
            for view in scan.stages
            if view.length and not view.consumers and view.stage != LEARNER_STAGE
        ]
        for warning in self.warnings:
            _log.warning(warning)

    async def _readmit_lost(self, present: frozenset[str]) -> None:
        """What was never sent is sent as it is; what is gone has failed, and its prompt is admitted again."""
        missing = [one for one in self.ledger.lost(present) if one.group_id not in self._arrived]
        unsent, self._unsent = self._unsent, set()
        if waiting := [one for one in missing if one.group_id in unsent]:
            await self._send(waiting)
        lost = [one for one in missing if one.group_id not in unsent]
        if lost:
            _log.error("groups are gone from the queue and are admitted again", groups=len(lost))
        for one in lost:
            await self._replace(self.ledger.end(one.group_id, "failed"))


def _check_name(group: RolloutGroup, entry: Entry) -> None:
    """Raises ValueError, Corrupted where payload, entry and its name are of different groups."""
    number = GroupName.of(entry.group_id).number
    if group.group_id != entry.group_id or not number == group.admission_number == entry.admission_number:
        raise Corrupted(
            f"the payload is of group {group.group_id[:60]!r}, number {group.admission_number}, "
            f"the entry of {entry.group_id[:60]!r}, number {entry.admission_number}"
        )
