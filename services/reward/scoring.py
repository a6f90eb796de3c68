"""Which sources stand behind which names, and scoring by them. Owns hot swap; knows no wire and no queue.

Every change replaces the whole table at once. A batch looks its source up once, so all of its scores are of
one digest, whatever is swapped meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from services.common.errors import AlreadyExists, InvalidInput, Mismatch, NotFound
from services.reward.rewards.base import RewardSource, ScoreOutcome, ScoreRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A name's source, and the name of the one that shadows it."""

    name: str
    source: RewardSource
    shadow: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Outcomes of one batch, and who scored it."""

    name: str
    digest: str
    outcomes: list[ScoreOutcome]


class RewardModels:
    """The table of reward models and rules. Changed by one thread, read by any."""

    def __init__(self) -> None:
        self._slots: Mapping[str, Slot] = MappingProxyType({})
        self._held: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._slots)

    def slot(self, name: str) -> Slot:
        """The slot of a name; "" is the only one there is. NotFound otherwise."""
        slots = self._slots
        if not name and len(slots) == 1:
            return next(iter(slots.values()))
        if name in slots:
            return slots[name]
        there = f"there are {', '.join(sorted(slots))}" if slots else "none is loaded"
        if not name:
            raise InvalidInput(f"model: expected a name; {there}", {"model": "expected a name"})
        raise NotFound(f"there is no reward model {name}; {there}")

    def add(self, name: str, source: RewardSource) -> None:
        """Put a source behind a new name. AlreadyExists where the name is taken."""
        if name in self._slots:
            raise AlreadyExists(f"reward model {name} is loaded already; swap it instead")
        self._put(Slot(name=name, source=source))

    def swap(self, name: str, source: RewardSource) -> str:
        """Put another source behind a name; the digest of the one before."""
        old = self.slot(name)
        self._put(Slot(name=old.name, source=source, shadow=old.shadow))
        return old.source.digest

    def remove(self, name: str) -> None:
        """Take a name away. Mismatch while it shadows another or serves the queue."""
        slot = self.slot(name)
        shadowed = [other.name for other in self._slots.values() if other.shadow == slot.name]
        if shadowed:
            raise Mismatch(f"reward model {slot.name} is the shadow of {shadowed[0]}")
        if slot.name in self._held:
            raise Mismatch(f"reward model {slot.name} serves the queue; swap it instead")
        self._slots = MappingProxyType({key: value for key, value in self._slots.items() if key != slot.name})

    def set_shadow(self, name: str, shadow: str) -> None:
        """Let another model score the same rows, for comparison only; "" ends that."""
        slot = self.slot(name)
        if shadow and self.slot(shadow).name == slot.name:
            raise InvalidInput("shadow: expected another model", {"shadow": "another model"})
        self._put(Slot(name=slot.name, source=slot.source, shadow=shadow))

    def hold(self, name: str) -> None:
        """Refuse to remove this name from now on: somebody depends on it."""
        self._held = self._held | {name}

    def score(self, name: str, rows: Sequence[ScoreRow]) -> Scored:
        """Score rows by the source that stands behind `name` now."""
        slot = self.slot(name)
        return Scored(name=slot.name, digest=slot.source.digest, outcomes=slot.source.score(rows))

    def _put(self, slot: Slot) -> None:
        self._slots = MappingProxyType({**self._slots, slot.name: slot})
