"""One run under a schedule: strikes, looks on, ends it, and says what was wrong.

schedule ─▶ strokes at their times ─▶ quiet ─▶ Stop ─▶ account, versions, optimality
             └─ recovery: until two steps more were trained
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak_account import account
from benchmarks.soak_files import kept, ledger_of, rows_of, taken
from benchmarks.soak_run import left_on_streams, make_files, optimality_of, stop_learner
from services.common.errors import TrimtabError
from tests.chaos.faults import WEIGHTS, Fault
from tests.chaos.invariants import (
    counts_add_up,
    epochs_rise,
    groups_whole,
    trained_on_known,
    versions_rise,
)
from tests.chaos.world import COMPLETIONS, World, world

RECOVERY_SECONDS, QUIET_SECONDS = 120.0, 20.0
# What a run without faults has by then; a shorter one is not judged by it.
LEAST_OPTIMALITY, ENOUGH_STEPS = 0.9, 200
LOOK_SECONDS = 0.25


@dataclass(slots=True)
class Outcome:
    """What a run came to. recoveries: of each fault, seconds from its end until two more steps were trained."""

    wrong: list[str] = field(default_factory=list)
    recoveries: list[tuple[Fault, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


async def run(folder: Path, faults: Sequence[Fault], seed: int, say: Callable[[str], None]) -> Outcome:
    """Train under these faults. seed: of the run, not of the schedule."""
    outcome, files = Outcome(), folder / "files"
    if not files.exists():
        make_files(files)
    async with world(folder / "run", files, seed, say) as struck:
        await struck.stack.ready("learner")
        await _until_steps(struck, 3)
        await _strike_all(struck, faults, outcome, say)
        await _settle(struck, outcome)
        await stop_learner(struck.stack)
        outcome.figures["optimality"] = await asyncio.to_thread(
            optimality_of, struck.stack, struck.layout, seed
        )
        standing, dead = await left_on_streams(struck.stack)
    _judge(struck, outcome, standing, dead)
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
    await struck.strike(fault)
    ended, before = time.monotonic(), struck.steps.look()
    while struck.steps.look() < before + 2:
        if time.monotonic() - ended > RECOVERY_SECONDS:
            outcome.wrong.append(f"no two steps within {RECOVERY_SECONDS:.0f} s after {fault}")
            return
        _look(struck, outcome)
        await asyncio.sleep(LOOK_SECONDS)
    outcome.recoveries.append((fault, time.monotonic() - ended))


async def _settle(struck: World, outcome: Outcome) -> None:
    """A quiet time at the end, in which it must go on."""
    before = struck.steps.look()
    await asyncio.sleep(QUIET_SECONDS)
    if struck.steps.look() <= before:
        outcome.wrong.append(f"no step in {QUIET_SECONDS:.0f} s without a fault")
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


def _judge(struck: World, outcome: Outcome, standing: frozenset[str], dead: int) -> None:
    """What can be said once it is over."""
    root = struck.layout.root
    rows = rows_of(struck.layout.metrics_file)
    found = account(ledger_of(root), taken(root, len(rows)), standing, rows)
    outcome.figures |= found | {"dead_letters": float(dead), "steps": float(len(rows))}
    outcome.wrong += [
        f"{name} = {value:.0f}" for name, value in found.items() if name.startswith("wrong_") and value
    ]
    arrived: dict[tuple[int, int], set[str]] = {}
    for name in WEIGHTS:
        events = _events(struck, name, "weights arrived")
        for one in events:
            arrived.setdefault((one["epoch"], one["step"]), set()).add(one["digest"])
        # A replica that was killed begins anew; its versions rise all the same.
        outcome.wrong += versions_rise(name, [(one["epoch"], one["step"]) for one in events])
    outcome.wrong += epochs_rise([one["epoch"] for one in _events(struck, "learner", "training begins")])
    for step in range(1, len(rows) + 1):
        taken_by = kept(root, step, ["group", "versions"])
        outcome.wrong += groups_whole(step, taken_by, COMPLETIONS)
        read = [{**row, "versions": json.loads(row["versions"])} for row in taken_by]
        outcome.wrong += trained_on_known(step, read, arrived)
    if len(rows) >= ENOUGH_STEPS and outcome.figures["optimality"] < LEAST_OPTIMALITY:
        outcome.wrong.append(
            f"optimality {outcome.figures['optimality']:.3f}, without faults {LEAST_OPTIMALITY}"
        )


def _events(struck: World, service: str, event: str) -> list[dict[str, Any]]:
    lines = struck.layout.log(service).read_text(errors="replace").splitlines()
    found = [_json(line) for line in lines]
    return [one for one in found if one.get("event") == event]


def _json(line: str) -> dict[str, Any]:
    """A line that a kill cut short says nothing."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
