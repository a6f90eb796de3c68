"""Which sources stand behind which names, and scoring by them. Owns hot swap; knows no wire and no queue.

Every change replaces the whole table at once. A batch looks its source up once, so all of its scores are of
one digest, whatever is swapped meanwhile. A composite is made anew with every change of what it is made of, so it
too is of one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType

from services.common.errors import AlreadyExists, InvalidInput, Mismatch, NotFound
from services.reward.futures import chained
from services.reward.observing import SILENT, TableListener
from services.reward.rewards.base import (
    Caller,
    ComposedSource,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceClosed,
)

ANYBODY = Caller()
Slots = Mapping[str, "Slot"]


def _everything(_name: str) -> bool:
    """For those who may hear of every model."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A name's source, and the name of the one that shadows it."""

    name: str
    source: RewardSource
    shadow: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Outcomes of one batch, and who scored it. digest: the source's when it was asked, for rows that name no other."""

    name: str
    source: RewardSource
    digest: str
    outcomes: list[ScoreOutcome]

    @property
    def digests(self) -> frozenset[str]:
        """Of all that scored a row; several where a model behind the source was swapped meanwhile."""
        named = frozenset(each.digest or self.digest for each in self.outcomes if each.value is not None)
        return named or frozenset([self.digest])


class RewardModels:
    """The table of sources. Changed under a lock, read by any thread without one."""

    def __init__(self, listener: TableListener = SILENT) -> None:
        self._listener = listener
        self._slots: Slots = MappingProxyType({})
        self._held: frozenset[str] = frozenset()
        self._changing = threading.RLock()

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._slots)

    def told_of(self, told: Callable[[str], bool]) -> list[Slot]:
        """Slots that the caller may hear of, by name; a shadow that it may not hear of is not named."""
        slots = [slot for name, slot in sorted(self._slots.items()) if told(name)]
        return [slot if told(slot.shadow) else replace(slot, shadow="") for slot in slots]

    def slot(self, name: str, *, told: Callable[[str], bool] = _everything) -> Slot:
        """The slot of a name; "" is the only one that the caller may hear of. NotFound otherwise.

        told: which names those are, in errors too.
        """
        slots = self._slots
        names = list(filter(told, sorted(slots)))
        if not name and len(names) == 1:
            return slots[names[0]]
        if name in slots:
            return slots[name]
        there = f"there are {', '.join(names)}" if names else f"none is {'for you' if slots else 'loaded'}"
        if not name:
            raise InvalidInput(f"model: expected a name; {there}", {"model": "expected a name"})
        raise NotFound(f"there is no reward model {name}; {there}")

    def check_free(self, name: str) -> None:
        """AlreadyExists where the name is taken."""
        if name in self._slots:
            raise AlreadyExists(f"reward model {name} is loaded already; swap it instead")

    def add(self, name: str, source: RewardSource) -> None:
        """Put a source behind a new name. AlreadyExists where the name is taken."""
        with self._changing:
            self.check_free(name)
            self._put(Slot(name=name, source=source))

    def swap(self, name: str, source: RewardSource) -> RewardSource:
        """Put another source behind a name; the one before, which is the caller's to close."""
        with self._changing:
            old = self.slot(name)
            self._put(replace(old, source=source))
        return old.source

    def remove(self, name: str) -> RewardSource:
        """Take a name away; its source is the caller's to close. Mismatch while somebody depends on it."""
        with self._changing:
            slot = self.slot(name)
            for other in self._slots.values():
                if other.shadow == slot.name:
                    raise Mismatch(f"reward model {slot.name} is the shadow of {other.name}")
                if slot.name in _needs(other.source):
                    raise Mismatch(f"reward model {slot.name} is a component of {other.name}")
            if slot.name in self._held:
                raise Mismatch(f"reward model {slot.name} serves the queue; swap it instead")
            left = {key: value for key, value in self._slots.items() if key != slot.name}
            self._slots = MappingProxyType(left)
            self._listener.closed(slot.name)
        return slot.source

    def set_shadow(self, name: str, shadow: str) -> None:
        """Let another model score the same rows, for comparison only; "" ends that."""
        with self._changing:
            slot = self.slot(name)
            if shadow and self.slot(shadow).name == slot.name:
                raise InvalidInput("shadow: expected another model", {"shadow": "another model"})
            # Nothing else scores now: composites stay as they are, and nobody hears of a swap.
            self._slots = MappingProxyType({**self._slots, slot.name: replace(slot, shadow=shadow)})

    def hold(self, name: str) -> None:
        """Refuse to remove this name from now on: somebody depends on it."""
        with self._changing:
            self._held = self._held | {name}

    def submit(self, name: str, rows: Sequence[ScoreRow], caller: Caller = ANYBODY) -> Future[Scored]:
        """Score rows by the source that stands behind `name` now, whatever is swapped meanwhile.

        See RewardSource.submit for what is raised and what cancelling the future does.
        """
        while True:
            slot = self.slot(name)
            try:
                outcomes = slot.source.submit(rows, caller)
            except SourceClosed:
                # Swapped between the lookup and the question: ask the one that is there now.
                if self.slot(name).source is slot.source:
                    raise
                continue
            return chained(outcomes, _labelled(slot))

    def score(self, name: str, rows: Sequence[ScoreRow], caller: Caller = ANYBODY) -> Scored:
        """The same, waited for: for threads."""
        return self.submit(name, rows, caller).result()

    def _put(self, slot: Slot) -> None:
        """Replace the table by one with this slot's new source, composites made anew around it."""
        slots = {**self._slots, slot.name: slot}
        sources = {name: each.source for name, each in slots.items()}
        for name, each in slots.items():
            composed = each.source
            if isinstance(composed, ComposedSource) and slot.name in {name, *composed.needs}:
                parts = {part: _component(name, part, sources) for part in composed.needs}
                slots[name] = replace(each, source=composed.with_components(parts))
        for name, each in slots.items():
            if name not in self._slots or self._slots[name].source is not each.source:
                self._listener.opened(name, each.source)
        self._slots = MappingProxyType(slots)


def _labelled(slot: Slot) -> Callable[[list[ScoreOutcome]], Scored]:
    digest = slot.source.digest
    return lambda outcomes: Scored(name=slot.name, source=slot.source, digest=digest, outcomes=outcomes)


def _needs(source: RewardSource) -> frozenset[str]:
    return source.needs if isinstance(source, ComposedSource) else frozenset()


def _component(whole: str, part: str, sources: Mapping[str, RewardSource]) -> RewardSource:
    source = sources.get(part)
    if source is None:
        raise NotFound(f"component {part} of {whole} is not loaded; load it first")
    if isinstance(source, ComposedSource):
        raise InvalidInput(
            f"component {part} of {whole} is itself made of others; name those instead",
            {"components": "models, rules, functions, remotes or judges"},
        )
    return source
