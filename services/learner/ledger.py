"""The ledger: which groups were admitted, and how each one ended. Pure; knows no queue.

admitted = trained + stale + failed + in_flight, always. A re-admission is a new group that names the one it
replaces; the old one has ended as stale or failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from services.common.errors import Mismatch
from services.learner.ended import GroupName, GroupRanges, Range

End = Literal["trained", "stale", "failed"]
ENDS: tuple[End, ...] = get_args(End)


def _none_ended() -> dict[End, GroupRanges]:
    return {how: GroupRanges() for how in ENDS}


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the learner keeps of a group in flight: enough to admit it again."""

    group_id: str
    number: int
    prompt_index: int
    tries: int
    replaces: str = ""
    step: int = 0
    """Steps done when it was admitted; 0 where that is not known any more."""


@dataclass(slots=True)
class Ledger:
    """Counts and groups in flight. Every change keeps the sum."""

    trained: int = 0
    stale: int = 0
    failed: int = 0
    next_number: int = 0
    in_flight: dict[str, Admitted] = field(default_factory=dict)
    ended: dict[End, GroupRanges] = field(default_factory=_none_ended)
    """Remembered so that no group is used twice, after a resume either."""
    given_up: GroupRanges = field(default_factory=GroupRanges)
    """Those of them whose prompt was not admitted again."""

    @property
    def admitted(self) -> int:
        """All groups ever admitted."""
        return self.trained + self.stale + self.failed + len(self.in_flight)

    def admit(
        self, prompt_index: int, group_id: str, *, tries: int = 0, replaces: str = "", step: int = 0
    ) -> Admitted:
        """Note a new group with the next admission number."""
        admitted = Admitted(group_id, self.next_number, prompt_index, tries, replaces, step)
        self.next_number += 1
        self.in_flight[group_id] = admitted
        return admitted

    def adopt(self, admitted: Admitted) -> None:
        """Note a group found in the queue that was admitted after the checkpoint was written."""
        self.in_flight[admitted.group_id] = admitted
        self.next_number = max(self.next_number, admitted.number + 1)

    def close_gaps(self) -> int:
        """Numbers given out of which nothing is left, neither here nor in the queue, are counted as failed; how many.

        A queue that came back empty, and then a learner that ended before its next checkpoint, leave such.
        """
        missing = max(0, self.next_number - self.admitted)
        self.failed += missing
        return missing

    def end(self, group_id: str, how: End) -> Admitted | None:
        """A group in flight has ended; None when it is not in flight, and then nothing is counted."""
        admitted = self.in_flight.pop(group_id, None)
        if admitted is None:
            return None
        setattr(self, how, getattr(self, how) + 1)
        self.ended[how].add(GroupName.of(group_id))
        return admitted

    def give_up(self, group_id: str) -> None:
        """Note that nothing was admitted in the place of a group that has ended."""
        self.given_up.add(GroupName.of(group_id))

    def reopen(self, group_id: str, *, tries: int) -> bool:
        """A group that failed and was given up is in flight again; False for any other, and then nothing changes."""
        name = GroupName.of(group_id)
        if name not in self.given_up or name not in self.ended["failed"]:
            return False
        self.given_up.remove(name)
        self.ended["failed"].remove(name)
        self.failed -= 1
        self.in_flight[group_id] = Admitted(group_id, name.number, name.prompt_index, tries)
        return True

    def has_ended(self, group_id: str, among: Iterable[End] = ENDS) -> bool:
        """Whether a group was counted already, as one of these; never one that bears no name of a group."""
        try:
            name = GroupName.of(group_id)
        except ValueError:
            return False
        return any(name in self.ended[how] for how in among)

    def lost(self, present: Iterable[str]) -> list[Admitted]:
        """Groups in flight that stand on no stage any more, oldest first."""
        there = set(present)
        gone = [one for one in self.in_flight.values() if one.group_id not in there]
        return sorted(gone, key=lambda one: one.number)

    def counts(self) -> dict[str, int]:
        """The figures of summary.json; they add up."""
        return {
            "admitted": self.admitted,
            "trained": self.trained,
            "stale": self.stale,
            "failed": self.failed,
            "in_flight": len(self.in_flight),
        }

    def state(self) -> dict[str, Any]:
        """For the checkpoint, as JSON."""
        return {
            "trained": self.trained,
            "stale": self.stale,
            "failed": self.failed,
            "next_number": self.next_number,
            "in_flight": [
                [one.group_id, one.number, one.prompt_index, one.tries, one.replaces, one.step]
                for one in self.in_flight.values()
            ],
            "ended": {how: [list(one) for one in ranges.ranges] for how, ranges in self.ended.items()},
            "given_up": [list(one) for one in self.given_up.ranges],
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> Ledger:
        """From a checkpoint's state. Raises Mismatch for one of an earlier form."""
        if not isinstance(state["ended"], dict):
            raise Mismatch(
                "an earlier version of Trimtab wrote this checkpoint: begin a new run, with its model/ as model.path"
            )
        ledger = cls(state["trained"], state["stale"], state["failed"], state["next_number"])
        for row in state["in_flight"]:
            admitted = Admitted(*row)
            ledger.in_flight[admitted.group_id] = admitted
        for how in ENDS:
            ledger.ended[how].ranges.extend(Range(*row) for row in state["ended"][how])
        ledger.given_up.ranges.extend(Range(*row) for row in state.get("given_up", ()))
        return ledger
