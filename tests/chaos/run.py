"""One run under a schedule: strikes, looks on, ends it, and has it judged.

schedule ─▶ strokes at their times ─▶ quiet ─▶ Stop ─▶ judge.py
             └─ recovery: until two steps more were trained, or two comparisons more acknowledged
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak_run import left_on_streams, make_files, optimality_of, stop_learner
from services.common.errors import TrimtabError
from tests.chaos.faults import PREFERENCE, Fault
from tests.chaos.invariants import counts_add_up
from tests.chaos.judge import ENOUGH_STEPS, LEAST_OPTIMALITY, judged
from tests.chaos.recoveries import recovered_by
from tests.chaos.world import World, world

RECOVERY_SECONDS, QUIET_SECONDS = 120.0, 20.0
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Recovery:
    """seconds: from a fault's end until it went on. by: what brought that about."""

    fault: Fault
    seconds: float
    by: str


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    wrong: list[str] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


async def run(folder: Path, faults: Sequence[Fault], seed: int, say: Callable[[str], None]) -> Outcome:
    """Train under these faults. seed: of the run, not of the schedule."""
    outcome, files = Outcome(), folder / "files"
    if not files.exists():
        make_files(files)
    async with world(folder / "run", files, seed, say) as struck:
        await struck.stack.ready("learner")
        await struck.stack.ready(PREFERENCE)
        labelling = asyncio.create_task(struck.labels.run())
        try:
            await _until_steps(struck, 3)
            await _strike_all(struck, faults, outcome, say)
            await _settle(struck, outcome)
        finally:
            labelling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await labelling
        await stop_learner(struck.stack)
        optimality = await asyncio.to_thread(optimality_of, struck.stack, struck.layout, seed)
        standing, dead = await left_on_streams(struck.stack)
        labels = await struck.labels.there()
    wrong, figures = judged(struck, standing, dead, labels)
    outcome.wrong += wrong
    outcome.figures = figures | {"optimality": optimality}
    if figures["steps"] >= ENOUGH_STEPS and optimality < LEAST_OPTIMALITY:
        outcome.wrong.append(f"optimality {optimality:.3f}, without faults {LEAST_OPTIMALITY}")
    return outcome


async def _strike_all(
    struck: World, faults: Sequence[Fault], outcome: Outcome, say: Callable[[str], None]
) -> None:
    began = time.monotonic()
    async with asyncio.TaskGroup() as strokes:
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
            say(str(fault))
            strokes.create_task(_stroke(struck, fault, outcome))


async def _stroke(struck: World, fault: Fault, outcome: Outcome) -> None:
    pid = struck.pid(fault.target)
    await struck.strike(fault)
    ended, before = time.monotonic(), _progress(struck, fault)
    while _progress(struck, fault) < before + 2:
        if time.monotonic() - ended > RECOVERY_SECONDS:
            outcome.wrong.append(f"nothing went on within {RECOVERY_SECONDS:.0f} s after {fault}")
            return
        _look(struck, outcome)
        await asyncio.sleep(LOOK_SECONDS)
    by = recovered_by(fault, pid, struck.pid(fault.target))
    outcome.recoveries.append(Recovery(fault, time.monotonic() - ended, by))


def _progress(struck: World, fault: Fault) -> int:
    """Of what the fault is in the way of: comparisons acknowledged, else steps trained."""
    return struck.labels.count if fault.target == PREFERENCE else struck.steps.look()


async def _settle(struck: World, outcome: Outcome) -> None:
    """A quiet time at the end, in which it must go on."""
    steps, labels = struck.steps.look(), struck.labels.count
    await asyncio.sleep(QUIET_SECONDS)
    if struck.steps.look() <= steps:
        outcome.wrong.append(f"no step in {QUIET_SECONDS:.0f} s without a fault")
    if struck.labels.count <= labels:
        outcome.wrong.append(f"no comparison in {QUIET_SECONDS:.0f} s without a fault")
    await struck.stack.ready("policy")
    try:
        struck.stack.supervisor.raise_failures()
    except TrimtabError as error:
        outcome.wrong.append(f"given up: {error}")


async def _until_steps(struck: World, count: int) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while struck.steps.look() < count:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(LOOK_SECONDS)


def _look(struck: World, outcome: Outcome) -> None:
    row = struck.steps.newest
    if row is not None:
        outcome.wrong += [told for told in counts_add_up(row) if told not in outcome.wrong]
