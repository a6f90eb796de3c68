"""Learns how long a group keeps a slot of a role busy, and how fast the learner steps. Knows no replica.

Slot-seconds per group = busy slot-seconds / completed groups, whatever the number of replicas. Scrapes are
gathered into blocks of at least `BLOCK_GROUPS` completions; the estimate is the ratio of sums over the last
`BLOCKS` blocks without the extreme ones (one stall or one giant cannot move it), its error the spread of the
blocks. Two blocks in a row far outside, on one side, are a new rate: everything older is forgotten. A new
revision of the model does so at once.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from orchestrator.planning.observed import LearnerObserved, RoleMemory, RoleMetrics

BLOCK_GROUPS = 16
BLOCKS = 32
FAR = 3.0
"""Standard deviations of a block that two in a row must exceed to be a new rate."""
LEAST_SPREAD = 0.08
"""Relative standard deviation of a block at least: fewer blocks than ten know their spread badly."""
LEAST_SECONDS = 1e-6
"""Of a group, where no time at all was measured: there is no infinite rate to plan for."""
UNKNOWN_ERROR = 0.15
"""Relative error of a rate that was told, or that one block knows."""

STEPS = 16
FASTER = 0.85
"""A step this much shorter than usual is a faster learner: a stall can lengthen a step, nothing shortens it."""
SLOWER = 1.15
SLOWER_STEPS = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its relative standard error."""

    mean: float
    error: float


def learn_role(memory: RoleMemory, metrics: RoleMetrics) -> RoleMemory:
    """The memory after one scrape."""
    if metrics.revision != memory.revision:
        known = work_estimate(memory, None)
        memory = replace(
            memory,
            blocks=(),
            open_block=(0.0, 0),
            revision=metrics.revision,
            prior=known.mean if known and memory.revision else memory.prior,
        )
    busy, done = memory.open_block
    busy, done = busy + metrics.busy_seconds, done + metrics.completed_groups
    if done < BLOCK_GROUPS:
        return replace(memory, open_block=(busy, done))
    blocks = _without_old_rate((*memory.blocks, (busy, done)))[-BLOCKS:]
    return replace(memory, blocks=blocks, open_block=(0.0, 0))


def work_estimate(memory: RoleMemory, told: float | None) -> Estimate | None:
    """Slot-seconds per group: measured, else of the model before, else `told`, else None.

    A slow-down that is under way shows before a block is full: busy seconds go on, completions do not.
    """
    prior = memory.prior if memory.prior is not None else told
    if not memory.blocks:
        return None if prior is None else Estimate(prior, UNKNOWN_ERROR)
    ratios = [busy / done for busy, done in memory.blocks]
    kept = sorted(memory.blocks, key=lambda block: block[0] / block[1])
    cut = len(kept) // 10
    kept = kept[cut : len(kept) - cut]
    mean = max(LEAST_SECONDS, sum(busy for busy, _ in kept) / sum(done for _, done in kept))
    if len(ratios) < 3:
        return Estimate(mean, UNKNOWN_ERROR / math.sqrt(len(ratios)))
    spread = max(statistics.stdev(ratios) / mean, LEAST_SPREAD)
    return Estimate(mean, min(UNKNOWN_ERROR, spread / math.sqrt(len(ratios))))


def _without_old_rate(blocks: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    """The blocks, or the newest two alone if both say that the rate is another."""
    if len(blocks) < 5:
        return blocks
    old = [busy / done for busy, done in blocks[:-2]]
    middle = statistics.median(old)
    # The median absolute deviation, scaled to a standard deviation, does not see a few wild blocks.
    spread = 1.4826 * statistics.median(abs(ratio - middle) for ratio in old)
    bound = FAR * max(spread, LEAST_SPREAD * middle)
    new = [busy / done for busy, done in blocks[-2:]]
    if all(ratio > middle + bound for ratio in new) or all(ratio < middle - bound for ratio in new):
        return blocks[-2:]
    return blocks


def learn_steps(steps: tuple[float, ...], learner: LearnerObserved) -> tuple[float, ...]:
    """The learner's last steps of its present speed: a faster one counts at once, slower ones after two."""
    for seconds in learner.step_seconds:
        if seconds <= 0:
            continue
        usual = statistics.median(steps) if steps else seconds
        steps = (seconds,) if seconds < FASTER * usual else (*steps, seconds)[-STEPS:]
        last = steps[-SLOWER_STEPS:]
        if len(last) == SLOWER_STEPS and min(last) > SLOWER * usual:
            steps = last
    return steps


def step_estimate(steps: tuple[float, ...], told: float | None) -> Estimate | None:
    """Seconds of a step: the median of the last ones, else `told`, else None."""
    if not steps:
        return None if told is None else Estimate(told, UNKNOWN_ERROR)
    mean = statistics.median(steps)
    spread = statistics.stdev(steps) / mean if len(steps) > 2 else 0.05
    return Estimate(mean, spread / math.sqrt(len(steps)))
