"""The port of the stage queue: what workers and the learner may ask of it.

Owns the words (stage, entry, lease, attempt) and the two ports; knows neither Redis nor what a group
contains. `redis_stages.py` is the real thing, `memory_stages.py` its twin; both pass tests/contract.

    learner ──admit──▶ stage a ──advance──▶ stage b ──advance──▶ learner ──acknowledge──▶ gone
                        │  ▲                                         │
                        └──┘ hand back, fail (attempt + 1)           └─ dead letter

Every move checks, in one atomic step, that the mover still owns the entry: same consumer, same delivery
count, same group id as taken. A mover that does not own it any more is told so and drops its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.25
"""Others look for what is left every fifth of a lease: work of one that died is found within 6 s."""
ATTEMPT_LIMIT = 3
LEARNER_STAGE = "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """A group to be admitted. `payload` is a serialised RolloutGroup."""

    group_id: str
    admission_number: int
    payload: bytes
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A group as taken from a stage, with what proves that the taker owns it."""

    stage: str
    entry_id: str
    group_id: str
    admission_number: int
    payload: bytes
    stored_attempts: int = 0
    deliveries: int = 1
    traceparent: str = ""
    requeued: bool = False
    """A person put it back from the dead letters."""

    @property
    def attempts(self) -> int:
        """Attempts that have ended badly: the stored number plus deliveries, minus this one."""
        return self.stored_attempts + self.deliveries - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Move a finished entry to the next stage."""

    entry: Entry
    destination: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What nobody could digest, and why."""

    letter_id: str
    stage: str
    group_id: str
    admission_number: int
    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """What stands on one stage: its length is its backlog, since advancing deletes.

    `pending` entries are in somebody's hands; `consumers` were heard of within the last lease.
    """

    stage: str
    length: int
    pending: int
    consumers: int
    group_ids: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One consistent look at all stages of the run. `sentinel` is false if the server came back empty."""

    stages: tuple[StageView, ...]
    sentinel: bool

    @property
    def group_ids(self) -> frozenset[str]:
        """Every group that stands anywhere."""
        return frozenset().union(*(view.group_ids for view in self.stages))


class StageQueue(Protocol):
    """What a worker of one stage needs. One object is one consumer (`consumer` is its name)."""

    consumer: str

    async def take(self, stage: str, *, limit: int, block_seconds: float) -> list[Entry]:
        """At most `limit` entries, oldest first; after `block_seconds` without any, an empty list.

        Entries whose owner stopped renewing for a lease are taken over first. An entry that has been
        attempted before is returned alone. Entries with a wrong checksum go to the dead letters.
        """
        ...

    async def renew(self, entries: Sequence[Entry]) -> list[bool]:
        """Restart the lease of each; false where it is someone else's by now."""
        ...

    async def advance(self, moves: Sequence[Advance]) -> list[bool]:
        """Add to the next stage, acknowledge, delete, each entry atomically; false where not owned."""
        ...

    async def hand_back(self, entries: Sequence[tuple[Entry, bytes]]) -> list[bool]:
        """Put entries back on their own stage with the payload as far as it got. No attempt is counted."""
        ...

    async def fail(self, entry: Entry, *, payload_if_last: bytes) -> bool:
        """Count an attempt: again on its own stage, or after ATTEMPT_LIMIT to the learner's stage.

        `payload_if_last` is the group with its failure set; it is used only for the learner.
        """
        ...

    async def leave(self) -> None:
        """Delete this consumer wherever it holds nothing. Never raises."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class LearnerQueue(StageQueue, Protocol):
    """What only the learner may do. Every call checks the epoch and raises LostOwnership if it is old."""

    @property
    def epoch(self) -> int:
        """The epoch that this learner began; 0 before."""
        ...

    async def start_epoch(self, *, at_least: int) -> int:
        """Begin: epoch = max(counter there, at_least) + 1, set atomically; sentinel and groups created.

        Everything pending on the learner's stage becomes this consumer's at once (fencing makes that
        safe), and `take` returns it first.
        """
        ...

    async def admit(self, stage: str, entries: Sequence[NewEntry]) -> None:
        """Add new groups to their first stage. Raises Unavailable if the server came back empty."""
        ...

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Remove entries of the learner's stage that a checkpoint covers (or that were dropped).

        Until then they stay this consumer's: the learner's stage has one reader, so nothing there needs
        its lease renewed. Raises Unavailable if the server came back empty.
        """
        ...

    async def bury(self, entry: Entry, *, reason: str) -> None:
        """Move an entry of the learner's stage to the dead letters; nothing if it is not owned any more."""
        ...

    async def scan(self) -> Scan:
        """All stages of the run in one atomic look. Answers on an emptied server too."""
        ...

    async def restore_sentinel(self) -> None:
        """Set epoch, sentinel and groups again after the server came back empty.

        Raises LostOwnership if another learner has begun there in the meantime.
        """
        ...


class QueueTools(Protocol):
    """What `trimtab queue` needs; takes part in no run."""

    async def view(self) -> Scan:
        """All stages, read only."""
        ...

    async def dead_letters(self, *, limit: int) -> list[DeadLetter]:
        """The oldest dead letters."""
        ...

    async def requeue(self, letter_id: str) -> bool:
        """Put a dead letter back on the stage it came from, marked, attempts at 0; false if it is not there."""
        ...

    async def forget(self) -> int:
        """Remove everything of the run, whoever still works on it; how many keys there were."""
        ...
