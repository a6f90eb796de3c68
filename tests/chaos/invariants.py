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


def resumes_rise(steps: Sequence[int]) -> list[str]:
    """Of the steps that learners resumed from, in order: a later one never from an older checkpoint."""
    return [
        f"a learner resumed from step {later}, one before it from step {earlier}"
        for earlier, later in pairwise(steps)
        if later < earlier
    ]


def losses_noticed(losses: Sequence[int], told: Sequence[int]) -> list[str]:
    """Of the times that the queue server came back empty: the learner said so, or a new one began, after each.

    Both as places in the learner's log, bytes.
    """
    return [
        f"the queue server came back empty and no learner said so after byte {loss} of its log"
        for loss in losses
        if not any(place >= loss for place in told)
    ]


def losses_counted(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Whoever says that the server came back empty, or that groups are gone, says how many."""
    names = {
        "the queue server came back empty": "in_flight",
        "groups are gone from the queue and are admitted again": "groups",
    }
    return [
        f"the learner does not say how much: {event['event']}"
        for event in events
        if event.get("event") in names and not isinstance(event.get(names[event["event"]]), int)
    ]


def full_disk_told(ends: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Of the processes that ended by themselves under a full disk, with what their logs say from then on."""
    return [
        f"{who} ended under a full disk, and its log does not say so: {' | '.join(lines[-3:])[:300]}"
        for who, lines in ends
        if not any("no room on disk for " in line for line in lines)
    ]


def clear_lines(who: str, lines: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """A log tells errors in single lines: no traceback, plain or in a field, but those with words of `known`."""
    return [
        f"{who} logs a traceback: {told[-300:]}"
        for told in _tracebacks(lines)
        if not any(words in told for words in known)
    ]


def _tracebacks(lines: Iterable[str]) -> list[str]:
    """Each as one text. A plain one ends where a structured line begins."""
    found, plain = list[str](), False
    for line in lines:
        if line.startswith("{"):
            plain = False
            found += [line] if '"exception": ' in line else []
        elif line.startswith("Traceback (most recent"):
            plain = True
            found.append(line)
        elif plain:
            found[-1] += f" | {line}"
    return found


def dead_letters_told(dead: int, told: int, *, emptied: bool) -> list[str]:
    """Every dead letter was logged by whoever wrote it. Of an emptied server some are gone."""
    if dead == told or (emptied and dead < told):
        return []
    return [f"{dead} dead letters, {told} were told of"]


def labels_kept(
    sent: Mapping[str, int],
    acknowledged: Mapping[str, int],
    there: Sequence[tuple[str, int]],
    *,
    uploaded: int,
    items: int,
) -> list[str]:
    """Of tasks and choices: what was acknowledged is there, as it was said, and once; nothing else but what was sent.

    uploaded, items: how many were acknowledged, how many there are; one upload may be unanswered.
    """
    times, held = Counter(task for task, _ in there), dict(there)
    lost = [task for task in acknowledged if task not in held]
    wrong = [f"comparison of {task} was acknowledged and is gone" for task in lost]
    wrong += [f"comparison of {task} is there {count} times" for task, count in times.items() if count > 1]
    wrong += [
        f"task {task} has answer {choice}, {sent.get(task)} was sent"
        for task, choice in there
        if sent.get(task) != choice
    ]
    if not uploaded <= items <= uploaded + 1:
        wrong.append(f"{items} items, {uploaded} uploads were acknowledged")
    return wrong
