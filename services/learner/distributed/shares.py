"""Which process passes which rows, and in which rounds. Pure: every process works it out for itself, alike."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from services.models.packing import micro_batches


def shares(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Rows of each process, in their order: the longest first, each to whoever has the fewest tokens so far."""
    loads = [(0, process) for process in range(processes)]
    rows: list[list[int]] = [[] for _ in range(processes)]
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        tokens, process = heapq.heappop(loads)
        rows[process].append(row)
        heapq.heappush(loads, (tokens + lengths[row], process))
    return [sorted(one) for one in rows]


def rounds(lengths: Sequence[int], processes: int, token_budget: int) -> list[list[list[int]]]:
    """Micro-batches of each process, as many for one as for the other: who has fewer gets empty ones at the end."""
    dealt = [
        [[rows[at] for at in micro] for micro in micro_batches([lengths[row] for row in rows], token_budget)]
        for rows in shares(lengths, processes)
    ]
    most = max(map(len, dealt))
    return [micros + [[]] * (most - len(micros)) for micros in dealt]
