"""Roles that share a pool of nodes: who goes without where there is no room for all. Knows no cluster, no rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.planning.decision import RoleDecision
from orchestrator.planning.observed import RoleMemory
from orchestrator.planning.spec import PipelineSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One role's decision before pools are shared."""

    decision: RoleDecision
    memory: RoleMemory
    target: int = 0
    """The number without the hold."""
    least: int = 0
    """The number that the load alone asks for, at the rate that the pools let through."""
    acts: bool = True
    """False: whatever the number is, nothing is done."""


def share_pools(spec: PipelineSpec, parts: list[Part]) -> list[Part]:
    """The parts, with fewer replicas where roles that share a pool want more than it has room for.

    A surplus that is only held goes first; then what is above the load, of the last roles first. The loads
    themselves fit: the planned rate was bounded by the pools.
    """
    parts = list(parts)
    pools = {role.name: role.pool or role.name for role in spec.roles}
    for pool, limit in spec.pools.items():
        shared = [index for index, part in enumerate(parts) if pools[part.decision.role] == pool]
        over = sum(parts[index].decision.wanted for index in shared) - limit
        for held in (True, False):
            for index in reversed(shared):
                part = parts[index]
                bottom = max(part.target, part.least) if held else part.least
                cut = min(over, part.decision.wanted - bottom)
                if cut > 0 and part.acts:
                    parts[index] = _cut(part, cut, f"pool {pool} has room for {limit}")
                    over -= cut
    return parts


def _cut(part: Part, by: int, told: str) -> Part:
    decision = part.decision
    limits = decision.limits if told in decision.limits else (*decision.limits, told)
    wanted = decision.wanted - by
    fewer = replace(
        decision,
        wanted=wanted,
        limits=limits,
        hold_left_seconds=None,
        reason=f"{wanted} is what the pool leaves",
    )
    return replace(part, decision=fewer, memory=replace(part.memory, surplus_since=None, surplus_keep=0))
