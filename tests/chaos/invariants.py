"""What must hold of a run whatever happened to it, from what it left behind. Pure.

Every function gives sentences about what is wrong; none where all holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Version = tuple[int, int, str]
"""Epoch, step, digest."""


def counts_add_up(row: Mapping[str, float]) -> list[str]:
    """Of a row of metrics.jsonl: admitted = trained + stale + failed + in flight."""
    parts = {name: row[f"rollouts/{name}"] for name in ("trained", "stale", "failed", "in_flight")}
    if row["rollouts/admitted"] == sum(parts.values()):
        return []
    return [f"step {row['step']:.0f}: {row['rollouts/admitted']:.0f} admitted, but {parts}"]


def versions_rise(who: str, arrived: Sequence[tuple[int, int]]) -> list[str]:
    """Of the versions that one replica took over, in order: never back within an epoch, epochs never fall."""
    return [
        f"{who} took version {later} over after {earlier}"
        for earlier, later in pairwise(arrived)
        if later < earlier
    ]


def groups_whole(step: int, rows: Iterable[Mapping[str, Any]], each: int) -> list[str]:
    """Of the rollouts that a step took: every group with all its completions."""
    sizes = Counter(row["group"] for row in rows)
    return [
        f"step {step}: {size} of {each} completions of {group}"
        for group, size in sizes.items()
        if size != each
    ]


def trained_on_known(
    step: int, rows: Iterable[Mapping[str, Any]], published: Mapping[tuple[int, int], set[str]]
) -> list[str]:
    """Every version that a rollout names was published under that name, with that digest."""
    named = {tuple(version) for row in rows for version in row["versions"]}
    return [
        f"step {step}: trained on version ({epoch}, {number}) with digest {digest[:12]}, which was never published"
        for epoch, number, digest in sorted(named)
        if digest not in published.get((epoch, number), set())
    ]


def epochs_rise(epochs: Sequence[int]) -> list[str]:
    """Of the learners, in the order in which they began: each has an epoch of its own, above the one before."""
    return [
        f"a learner began epoch {later} after epoch {earlier}"
        for earlier, later in pairwise(epochs)
        if later <= earlier
    ]
