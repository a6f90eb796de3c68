"""Which faults come when: a schedule drawn from a seed, and the shortest part of one that still fails. Pure."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "restart", "cut", "unheard", "delay", "flip", "twice", "full", "lose", "clock"]

SERVICES = ("policy", "policy-2", "reference", "reward", "learner")
"""Those with a wire to the queue."""
QUEUE, LEARNER, PREFERENCE = "queue", "learner", "preference"
PROCESSES = (*SERVICES, PREFERENCE, QUEUE)
WEIGHTS = ("policy", "policy-2")
"""Who reads weights over a wire that delays and damages."""
LEASE_SECONDS = 4.0
HOUR = 3600
GAP_SECONDS = 7.0
"""Between two faults, on average, unless somebody asks for another."""

# How often a kind is drawn, what it strikes, and how long it lasts, seconds. A stall or a cut may outlast a lease.
_KINDS: dict[Kind, tuple[int, tuple[str, ...], tuple[float, float]]] = {
    "kill": (8, PROCESSES, (0.0, 0.0)),
    "stop": (6, PROCESSES, (0.5, 3 * LEASE_SECONDS)),
    "restart": (4, PROCESSES, (0.0, 0.0)),
    "cut": (5, SERVICES, (0.5, 3 * LEASE_SECONDS)),
    "unheard": (3, SERVICES, (0.0, 0.0)),
    "delay": (2, WEIGHTS, (2.0, 8.0)),
    "flip": (2, WEIGHTS, (0.0, 0.0)),
    "twice": (2, WEIGHTS, (0.0, 0.0)),
    "full": (4, (LEARNER, LEARNER, PREFERENCE, QUEUE), (2.0, 8.0)),
    "lose": (1, (QUEUE,), (0.0, 0.0)),
    "clock": (2, ("all",), (2.0, 8.0)),
}
OFFSETS = (-24 * HOUR, -HOUR, -60, 60, HOUR, 24 * HOUR)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. at: seconds after the run began. seconds: how long it lasts. size: of a clock's jump, seconds."""

    at: float
    kind: Kind
    target: str
    seconds: float = 0.0
    size: int = 0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:7.1f} s  {self.kind} {self.target}{lasting}{f' by {self.size:+d} s' if self.size else ''}"


def schedule(seed: int, seconds: float, *, gap: float, kinds: Sequence[Kind] = tuple(_KINDS)) -> list[Fault]:
    """Faults from the first gap to `seconds`, `gap` seconds apart on average; they may overlap. The same for a seed."""
    draws, at, found = random.Random(seed), 0.0, list[Fault]()
    weights = [_KINDS[kind][0] for kind in kinds]
    while (at := at + draws.expovariate(1 / gap)) < seconds:
        [kind] = draws.choices(kinds, weights)
        _, targets, (shortest, longest) = _KINDS[kind]
        found.append(
            Fault(
                round(at, 3),
                kind,
                draws.choice(targets),
                round(draws.uniform(shortest, longest), 3),
                draws.choice(OFFSETS) if kind == "clock" else 0,
            )
        )
    return found


async def shortest(faults: Sequence[Fault], fails: Callable[[list[Fault]], Awaitable[bool]]) -> list[Fault]:
    """A part of the schedule that still fails and of which nothing can be left out (ddmin, Zeller 2002)."""
    kept, pieces = list(faults), 2
    while len(kept) > 1:
        size = -(-len(kept) // pieces)
        for start in range(0, len(kept), size):
            without = kept[:start] + kept[start + size :]
            if without and await fails(without):
                kept, pieces = without, max(2, pieces - 1)
                break
        else:
            if pieces >= len(kept):
                break
            pieces = min(len(kept), 2 * pieces)
    return kept
