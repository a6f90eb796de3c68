"""Deals out an offline run's rows, step by step: to the run what the intake of rollouts is, without a queue.

The order is one permutation a pass over the file, by the run's seed; a checkpoint is one number, the place in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import Mismatch
from services.common.spec.run import RunSpec
from services.common.stages.base import Entry
from services.learner.admission import prompt_index
from services.learner.ended import GroupName
from services.learner.ledger import Ledger
from services.learner.offline.rows import Row
from services.models.manifest import Version
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup


@dataclass(frozen=True, slots=True)
class Dealt:
    """A row in the place of a group that has arrived."""

    samples: list[Row]
    group_id: str
    group: RolloutGroup = field(default_factory=RolloutGroup)


class OfflineBatches:
    """See Intake; what is in flight is never more than the batch that is learnt from."""

    def __init__(self, spec: RunSpec, rows: Sequence[Row]) -> None:
        self.ledger = Ledger()
        self.warnings: list[str] = []
        self.unacknowledged: list[Entry] = []
        self.unacknowledged_bytes = 0
        self._spec, self._rows = spec, rows
        self._position = 0

    def published(self, version: Version, step: int) -> None:
        """Nothing here depends on it."""

    def trained(self, batch: Sequence[Dealt]) -> None:
        """These have been learnt from."""
        for one in batch:
            self.ledger.end(one.group_id, "trained")

    def staleness(self, group: RolloutGroup) -> int | None:  # noqa: ARG002 - as the intake's
        """Data has no age."""
        return 0

    def state(self) -> dict[str, Any]:
        """For the checkpoint, as JSON."""
        return {"position": self._position, "rows": len(self._rows), "ledger": self.ledger.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises Mismatch where the file has another number of rows."""
        if state["rows"] != len(self._rows):
            raise Mismatch(
                f"{self._spec.data.prompts}: the run began with {state['rows']} rows, the file has {len(self._rows)}"
            )
        self._position = int(state["position"])
        self.ledger = Ledger.of(state["ledger"])

    async def settle(self, *, resumed: bool) -> None:
        """Nothing is left anywhere."""

    async def acknowledge(self) -> None:
        """Nobody waits for it."""

    async def mending(self, work: Callable[[], Awaitable[None]]) -> None:
        """Nothing that could break."""
        await work()

    async def batch(self, interrupted: Callable[[], bool]) -> list[Dealt] | None:
        """The next rows; None once `interrupted` says so."""
        if interrupted():
            return None
        dealt = []
        for _ in range(self._spec.rollout.batch_groups):
            index = prompt_index(
                self._position, len(self._rows), seed=self._spec.seed, shuffle=self._spec.data.shuffle
            )
            self._position += 1
            group_id = str(GroupName(0, self.ledger.next_number, index))
            self.ledger.admit(index, group_id)
            dealt.append(Dealt([self._rows[index]], group_id))
        return dealt


class NoQueue:
    """In the place of the run's queue: an epoch is one more than the last, and there is nothing to see."""

    async def start_epoch(self, *, at_least: int) -> int:
        """See LearnerQueue."""
        return at_least + 1

    async def scan(self) -> None:
        """See LearnerQueue."""

    async def leave(self) -> None:
        """See LearnerQueue."""
