"""Which groups have ended: names of groups, and sets of them that stay small however long a run is. Pure.

A group is named `epoch-number-prompt`, 2-00000137-5: who admitted it, as which group of the run, for which prompt.
Numbers end nearly in order, so that runs of them are kept as ranges instead of one name after another.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

# More than that would be groups that all ended out of order; the oldest are forgotten then.
REMEMBERED_RANGES = 65_536


class GroupName(NamedTuple):
    """What a group id says."""

    epoch: int
    number: int
    prompt_index: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number:08d}-{self.prompt_index}"

    @classmethod
    def of(cls, group_id: str) -> GroupName:
        """Raises ValueError for an id that no learner gave."""
        with suppress(ValueError):
            epoch, number, index = (int(part) for part in group_id.split("-"))
            name = cls(epoch, number, index)
            if str(name) == group_id:
                return name
        raise ValueError(f"{group_id[:60]!r} is no id that a learner gave")


class Range(NamedTuple):
    """Numbers of one epoch, both ends among them."""

    epoch: int
    first: int
    last: int


@dataclass(slots=True)
class GroupRanges:
    """A set of (epoch, number): ranges in order, none touching the next."""

    ranges: list[Range] = field(default_factory=list)

    def __contains__(self, name: GroupName) -> bool:
        at = self._after(name)
        return at > 0 and self._covers(at - 1, name.epoch, name.number)

    def add(self, name: GroupName) -> None:
        """Joined with the ranges that it touches."""
        at = self._after(name)
        if at > 0 and self._covers(at - 1, name.epoch, name.number):
            return
        begin, end, first, last = at, at, name.number, name.number
        if at > 0 and self._covers(at - 1, name.epoch, name.number - 1):
            begin, first = at - 1, self.ranges[at - 1].first
        if at < len(self.ranges) and self._covers(at, name.epoch, name.number + 1):
            end, last = at + 1, self.ranges[at].last
        self.ranges[begin:end] = [Range(name.epoch, first, last)]
        del self.ranges[: max(0, len(self.ranges) - REMEMBERED_RANGES)]

    def remove(self, name: GroupName) -> None:
        """What was around it stays."""
        at = self._after(name) - 1
        if at < 0 or not self._covers(at, name.epoch, name.number):
            return
        one = self.ranges[at]
        left = (one._replace(last=name.number - 1), one._replace(first=name.number + 1))
        self.ranges[at : at + 1] = [part for part in left if part.first <= part.last]

    def _after(self, name: GroupName) -> int:
        """Where the first range stands that begins beyond it."""
        return bisect_right(self.ranges, (name.epoch, name.number), key=lambda one: one[:2])

    def _covers(self, at: int, epoch: int, number: int) -> bool:
        one = self.ranges[at]
        return one.epoch == epoch and one.first <= number <= one.last
