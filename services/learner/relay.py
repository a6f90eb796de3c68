"""Who gets new weights from whom, so that n replicas cost the learner one transfer and not n. Pure.

    learner ──▶ r0 ─┬─▶ r1 ─┬─▶ r3        Readers stand in the order they came; each passes on to FAN_OUT others.
                    │       └─▶ r4        One that failed somebody stands last, where nobody depends on it, until it
                    └─▶ r2 ─┬─▶ r5        has the newest version again. Who comes late gets it from one that has it.
                            └─▶ r6

It only advises: a reader whose source is silent asks the next one, and at last the learner.
"""

from __future__ import annotations

from collections import Counter

from services.models.manifest import Version

FAN_OUT = 2


class Relay:
    """The readers that can pass weights on, by the address where they do."""

    def __init__(self) -> None:
        # Streams open from each: one that connects anew may be here twice for a moment.
        self._streams: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._held: dict[str, Version] = {}
        self._asked: Counter[str] = Counter()

    def joined(self, reader: str) -> None:
        """A reader watches; one without an address passes nothing on."""
        if reader:
            self._streams[reader] += 1

    def left(self, reader: str) -> None:
        """One of its streams has ended."""
        if reader:
            self._streams[reader] -= 1
            if self._streams[reader] <= 0:
                del self._streams[reader]
                self._held.pop(reader, None)
                self._failed.discard(reader)
                self._asked.pop(reader, None)

    def holds(self, reader: str, version: Version) -> None:
        """It has this version, verified."""
        if reader in self._streams:
            self._held[reader] = version
            self._failed.discard(reader)

    def failed(self, source: str) -> None:
        """It did not deliver."""
        if source in self._streams:
            self._failed.add(source)

    def sources(self, reader: str, version: Version) -> list[str]:
        """Whom to ask for this version, best first; empty: the learner."""
        holding = [one for one, held in self._held.items() if held == version and self._may_help(one, reader)]
        if holding:
            best = min(holding, key=lambda one: self._asked[one])
            self._asked[best] += 1
            return [best]
        order = self._order()
        place = order.index(reader) if reader in order else len(order)
        if place == 0:
            return []
        chosen = [order[(place - 1) // FAN_OUT], order[0]]
        return [one for one in dict.fromkeys(chosen) if self._may_help(one, reader)]

    def _order(self) -> list[str]:
        return sorted(self._streams, key=lambda one: one in self._failed)

    def _may_help(self, source: str, reader: str) -> bool:
        return source != reader and source not in self._failed
