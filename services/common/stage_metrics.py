"""What a stage worker counts of its work. The scaler learns a role's speed from it, so the names are a contract.

Busy seconds are slot-seconds: a batch of 8 groups that takes 2 s counts 16. So busy / done is what one group costs,
whatever the number of replicas and however full they are (orchestrator/planning/rates.py).
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BUSY = Counter("trimtab_stage_busy_seconds", "Slot-seconds spent on groups.", ["stage"])
GROUPS = Counter(
    "trimtab_stage_groups",
    "Groups that left this worker: done, unfinished, failed, lost.",
    ["stage", "outcome"],
)
HELD = Gauge("trimtab_stage_held_groups", "Groups that this worker has in hand.", ["stage"])
DRAINING = Gauge(
    "trimtab_stage_draining",
    "1 while this worker is marked to drain, holds nothing and takes nothing.",
    ["stage"],
)


class StageMetrics:
    """Of one worker."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._busy, self._held = BUSY.labels(stage), HELD.labels(stage)
        self._draining = DRAINING.labels(stage)
        self._held.set(0)
        self._draining.set(0)
        # Seen from the first scrape on: a rate begins where the process does.
        GROUPS.labels(stage, "done")

    def took(self, groups: int) -> None:
        """So many are in hand now."""
        self._held.set(groups)

    def draining(self, rests: bool) -> None:
        """It holds nothing and takes nothing, or takes work again."""
        self._draining.set(rests)

    def worked(self, groups: int, seconds: float) -> None:
        """So many were processed together."""
        self._busy.inc(groups * seconds)

    def left(self, outcome: str) -> None:
        """One has gone."""
        GROUPS.labels(self._stage, outcome).inc()
