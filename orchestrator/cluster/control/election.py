"""Whether this replica leads. Pure: records and times in, wishes out; knows no API.

Clocks of other machines are never compared with ours: a holder is taken for dead when its record has not changed for
its own duration by our clock. We count from before the request was sent, and stop `margin` before others may take
over, so that two never write at once.

    nobody holds it ──▶ create / take ──▶ leads ──renew──▶ leads
    held by another ──▶ wait (its duration without a change) ──▶ take
    leads ──no renewal for renew_seconds──▶ does not lead, at once
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds."""

    lease_seconds: float = 15.0
    renew_seconds: float = 10.0
    """Without a renewal for so long, we do not lead. The rest of the lease is for requests under way."""
    retry_seconds: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What a Lease says."""

    holder: str
    duration_seconds: float
    renewed: str = ""
    """Its time, as written: only whether it changes matters."""
    transitions: int = 0
    acquired: str = ""
    resource_version: str = ""


class Wish(StrEnum):
    """What to do with the Lease now."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


class Election:
    """One candidate. Times are seconds of one clock that never goes back."""

    def __init__(self, identity: str, timing: Timing | None = None) -> None:
        self.identity, self.timing = identity, timing or Timing()
        self._seen: LeaseRecord | None = None
        self._changed_at = 0.0
        self._renewed_at: float | None = None

    @property
    def seen(self) -> LeaseRecord | None:
        """The record as last seen."""
        return self._seen

    def wish(self, record: LeaseRecord | None, now: float) -> Wish:
        """What to do, given the record as just read (None: there is none)."""
        if record is None:
            self._seen = None
            return Wish.CREATE
        if self._seen is None or _beat(record) != _beat(self._seen):
            self._changed_at = now
        self._seen = record
        if record.holder == self.identity:
            return Wish.RENEW
        self._renewed_at = None
        free = not record.holder or now - self._changed_at >= record.duration_seconds
        return Wish.TAKE if free else Wish.WAIT

    def renewed(self, sent_at: float) -> None:
        """Our write went through. `sent_at`: before it was sent."""
        self._renewed_at = sent_at

    def lost(self) -> None:
        """Somebody else holds it, or it is gone."""
        self._renewed_at = None

    def leads(self, now: float) -> bool:
        """Whether we may write."""
        return self._renewed_at is not None and now - self._renewed_at < self.timing.renew_seconds


def _beat(record: LeaseRecord) -> tuple[str, str, int]:
    return record.holder, record.renewed, record.transitions
