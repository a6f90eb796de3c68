"""Owns the list of atomic steps a queue server can do; knows neither when to do one nor how it is done.

`consumer.py` decides when. Redis does each step as one Lua script, the twin as one Python function that never
awaits in between: the two are compared step by step in tests/contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.stages.base import Entry, NewEntry, Scan
from services.common.stages.entry import RawEntry


@dataclass(frozen=True, slots=True)
class Move:
    """From the entry's stage to `destination`, with the number of attempts to be stored there.

    `payload` None leaves the payload as it stands on the server.
    """

    entry: Entry
    destination: str
    attempts: int
    payload: bytes | None


class Steps(Protocol):
    """The steps of one consumer. Those of a learner (`epoch` > 0) are all fenced by epoch and token."""

    consumer: str
    epoch: int

    @property
    def connected_at(self) -> float:
        """When, by the consumer's clock, the server was last reached anew, or took what it had refused to all."""
        ...

    async def join(self, stage: str) -> None:
        """Create stream and consumer group if they are absent; the group starts at the first entry."""
        ...

    async def read(self, stage: str, limit: int, block_seconds: float) -> list[RawEntry]:
        """Entries nobody has had yet; joins the stage where that is needed."""
        ...

    async def claim(self, stage: str, lease_seconds: float) -> RawEntry | None:
        """Take over one entry whose owner was silent for a lease. Counts as a delivery.

        None if there is none, and if the connection was lost: a claim is never repeated after that.
        """
        ...

    async def move(self, moves: Sequence[Move]) -> list[bool]:
        """Add there, acknowledge and delete here; false where not owned. Nothing moves at a wrong type."""
        ...

    async def renew(self, entries: Sequence[Entry]) -> list[bool]:
        """Restart the leases; false where not owned."""
        ...

    async def bury(self, entry: Entry, reason: str) -> bool:
        """Move to the dead letters; false where not owned."""
        ...

    async def leave(self, stages: Sequence[str]) -> None:
        """Delete this consumer from each stage where it holds nothing."""
        ...

    async def check(self) -> None:
        """Raise LostOwnership unless this is the learner that began last; Unavailable if all is gone."""
        ...

    async def start_epoch(self, at_least: int) -> int:
        """Raise the epoch and take the sentinel."""
        ...

    async def restore(self) -> None:
        """Set epoch and sentinel again on an emptied server."""
        ...

    async def admit(self, stage: str, entries: Sequence[NewEntry]) -> None:
        """Add new entries."""
        ...

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Remove entries of the learner's stage."""
        ...

    async def adopt(self, idle_seconds: float) -> list[tuple[str, int]]:
        """Make what other consumers of the learner's stage left idle so long ours.

        Returns (entry id, deliveries) of everything pending that is ours then. Counts as no delivery.
        """
        ...

    async def fetch(self, ids: Sequence[tuple[str, int]]) -> list[RawEntry]:
        """Entries of the learner's stage by (id, deliveries); those that are gone are left out."""
        ...

    async def scan(self, lease_seconds: float) -> Scan:
        """All stages in one look."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
