"""From what is there to the number that is wanted: who is ordered, drained, taken back, removed, and when.

Nothing that holds a group is ever removed: the busy are told to drain, and leave at a later decision, by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from orchestrator.planning.actions import Action, Drain, Scale, Undrain
from orchestrator.planning.observed import Replica, ReplicaState, RoleMemory, RoleObserved, ServiceMemory
from orchestrator.planning.spec import Auto

LEAVING = (ReplicaState.DRAINING, ReplicaState.RECLAIMED)
Held = TypeVar("Held", RoleMemory, ServiceMemory)


def staying(seen: RoleObserved) -> int:
    """Replicas that the Deployment's number is good for: without those that drain or are being taken."""
    return max(0, seen.desired - seen.count(*LEAVING))


def hold(
    memory: Held, current: int, target: int, seconds: float, now: float
) -> tuple[Held, int, float | None]:
    """The number after the hold, and how long it lasts yet. More at once, fewer after `seconds`."""
    if target >= current:
        return replace(memory, surplus_since=None, surplus_keep=0), target, None
    if memory.surplus_since is None:
        return replace(memory, surplus_since=now, surplus_keep=target), current, seconds
    keep = max(memory.surplus_keep, target)
    left = memory.surplus_since + seconds - now
    if left > 0:
        return replace(memory, surplus_keep=keep), current, left
    return replace(memory, surplus_since=None, surplus_keep=0), keep, None


def within(bounds: Auto, room: int | None, target: int) -> tuple[int, list[str]]:
    """`target` within its bounds and its pool's room (None: no limit), and which of them changed it, in words."""
    limits = []
    if target < bounds.minimum:
        target = bounds.minimum
        limits.append(f"min {bounds.minimum}")
    if target > bounds.maximum:
        target = bounds.maximum
        limits.append(f"max {bounds.maximum}")
    if room is not None and target > room:
        target = room
        limits.append(f"pool limit {room}")
    return target, limits


def moves(role: str, seen: RoleObserved, wanted: int, reason: str) -> list[Action]:
    """The actions that lead from `seen` to `wanted` replicas that stay; `reason` goes with each."""
    draining = [replica for replica in seen.replicas if replica.state is ReplicaState.DRAINING]
    difference = wanted - staying(seen)
    actions: list[Action] = []
    if difference > 0:
        # A warm replica that drains is back at once; the one that still holds most lost least.
        back = sorted(draining, key=lambda replica: -replica.held_groups)[:difference]
        actions += [Undrain(role, replica.name, reason) for replica in back]
        draining = [replica for replica in draining if replica not in back]
        difference -= len(back)
    leave = [replica for replica in draining if replica.held_groups == 0]
    if difference < 0:
        for replica in _victims(seen)[:-difference]:
            if replica.held_groups:
                actions.append(Drain(role, replica.name, reason))
            else:
                leave.append(replica)
        # Pods that were ordered and are not there yet need no name.
        difference += min(-difference, len(_victims(seen)))
    number = seen.desired + difference - len(leave)
    if number != seen.desired:
        gone = tuple(sorted(replica.name for replica in leave))
        only_drained = difference == 0 and set(gone) <= {replica.name for replica in draining}
        actions.append(Scale(role, number, "drained" if only_drained else reason, gone))
    return actions


def _victims(seen: RoleObserved) -> list[Replica]:
    """Who goes first: what is still starting (the youngest), then the emptiest, the slowest, the youngest."""
    there = [replica for replica in seen.replicas if replica.state not in LEAVING]
    return sorted(
        there,
        key=lambda replica: (
            replica.state is not ReplicaState.STARTING,
            replica.held_groups,
            replica.pace,
            replica.age_seconds,
            replica.name,
        ),
    )
