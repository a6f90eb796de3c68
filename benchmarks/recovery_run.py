"""The run of benchmarks.recovery, and its kills.

    Stack (two policies, references, rewards; learner; queue) ─▶ steps go on ─▶ kill one of each ─▶ Stop ─▶ account

What a killed replica held is read from the queue itself (recovery_looks.py), before the supervisor has it back.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recovery_looks import QueueLooks, first_step_since, loading_seconds
from benchmarks.soak_files import accounted
from benchmarks.soak_run import left_on_streams, stop_learner
from benchmarks.step_topics import texts
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from services.common.spec.rewards import reward_tables
from services.common.spec.run import RunSpec

ROLES = ("policy", "reference", "reward")
SERVICES = (*(name for role in ROLES for name in (role, f"{role}-2")), "learner")
_STEPS = 100_000
_WARM_STEPS = 2
_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 180.0
_TRIES = 10
"""A replica may be done with what it holds between the look and the kill."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Killed:
    """Of one replica: entries that it held, seconds until another had them, and until they were done."""

    held: int
    taken: float
    done: float


def spec_of(model: str, scorer: Path, prompts: Path, seed: int) -> RunSpec:
    """GRPO, eight groups of four a step, up to one step stale; a step takes some seconds on two cores."""
    return RunSpec.model_validate(
        {
            "name": "recovery",
            "seed": seed,
            "steps": _STEPS,
            "model": {"path": model, "dtype": "bfloat16", "threads": 1, "device": "cpu"},
            "data": {"prompts": str(prompts)},
            "reward_model": str(scorer),
            "sampling": {"max_new_tokens": 16},
            "algorithm": {"kind": "grpo", "num_generations": 4, "beta": 0.04},
            "optimiser": {"learning_rate": 1e-6},
            "rollout": {"batch_groups": 8, "max_staleness": 1, "keep": True},
            "checkpoint": {"every_steps": 5, "keep": 2},
        }
    )


def settings_of(spec: RunSpec, lease: float) -> dict[str, dict[str, Any]]:
    """Leases; the second replica of a role on the same stage, two groups at a time, so that both have work."""
    settings: dict[str, dict[str, Any]] = {}
    for name in SERVICES:
        stage = name.removesuffix("-2")
        queue: dict[str, Any] = {"lease_seconds": lease, "renew_seconds": lease / 4, "stage": stage}
        settings[name] = {"queue": queue if name == "learner" else {**queue, "batch_groups": 2}}
        if stage == "reward":
            settings[name]["models"] = reward_tables("reward", spec.reward_model, ())
    return settings


async def recovered(
    folder: Path, model: str, *, seed: int, lease: float, learner: bool, say: Say
) -> dict[str, float]:
    """Figures of one run."""
    prompts, scorer = folder / "prompts.jsonl", folder / "scorer"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts()))
    _apart(_new_scorer, model, scorer)
    layout, spec = RunLayout.prepare(folder / "run"), spec_of(model, scorer, prompts, seed)
    stack = Stack(layout, spec, SERVICES, settings=settings_of(spec, lease), env=_environment(), on_event=say)
    figures = {"lease_seconds": lease}
    async with stack:
        looks = QueueLooks(stack.queue_url, stack.run_uid)
        try:
            for name in SERVICES:
                await stack.ready(name)
            await _more_steps(layout, _WARM_STEPS)
            for role in ROLES:
                figures |= _told(role, await _kill_replica(stack, looks, role), say)
            if learner:
                figures |= await _kill_learner(stack, say)
            figures |= await _restart_queue(stack, looks, say)
            await _more_steps(layout, 1)
        finally:
            await looks.close()
        await stop_learner(stack)
        standing, dead = await left_on_streams(stack)
        figures["peak_memory_gib"] = stack.peak_memory_gib
    return figures | accounted(layout, standing, dead)


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _apart(work: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own: this one's memory counts, and has no torch."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the reward model was not made: status {process.exitcode}")


def _new_scorer(model: str, folder: Path) -> None:
    """A reward model of the policy's size, its head by chance: for what it costs."""
    from services.models.reward_model import new_reward_model

    new_reward_model(model, dtype="bfloat16", seed=1).save(folder)


# ---------------------------------------------------------------- kills


async def _kill_replica(stack: Stack, looks: QueueLooks, role: str) -> Killed:
    """The first replica of a role, while it holds something. Raises RuntimeError where it never does."""
    for _ in range(_TRIES):
        await stack.ready(role)
        await stack.ready(f"{role}-2")
        await _until(lambda: looks.held(role, role), f"{role} holds nothing")
        _signal(stack, role, signal.SIGKILL)
        began = time.monotonic()
        held = await looks.held(role, role)
        if held:
            return await _wait_for(looks, role, held, began)
    raise RuntimeError(f"{role} was killed {_TRIES} times and held nothing")


async def _wait_for(looks: QueueLooks, role: str, held: list[str], began: float) -> Killed:
    taken = 0.0
    while owners := await looks.owners(role, held):
        if role in owners.values():
            taken = time.monotonic() - began
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise RuntimeError(f"what {role} held is not done after {_PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)
    done = time.monotonic() - began
    return Killed(len(held), taken, done)


def _told(role: str, killed: Killed, say: Say) -> dict[str, float]:
    say(f"{role}: {killed.held} groups taken over after {killed.taken:.1f} s, done after {killed.done:.1f} s")
    return {
        f"{role}_seconds": killed.taken,
        f"{role}_done_seconds": killed.done,
        f"{role}_held": float(killed.held),
    }


async def _kill_learner(stack: Stack, say: Say) -> dict[str, float]:
    """Until the next step, by the clock that metrics.jsonl is written by."""
    await _until_checkpoint(stack.layout)
    _signal(stack, "learner", signal.SIGKILL)
    began = time.time()
    await _until(lambda: _trained_after(stack.layout, began), "no step was trained")
    whole = (await _trained_after(stack.layout, began) or began) - began
    load = loading_seconds(stack.layout.log("learner").read_text(errors="replace").splitlines(), began)
    say(f"learner: a step after {whole:.1f} s, {load:.1f} s of which its model took to load")
    return {"learner_seconds": whole - load, "learner_load_seconds": load}


async def _restart_queue(stack: Stack, looks: QueueLooks, say: Say) -> dict[str, float]:
    figures = {}
    for how, number in (("killed", signal.SIGKILL), ("terminated", signal.SIGTERM)):
        pid, began = _signal(stack, "queue", number), time.time()
        gone = await asyncio.to_thread(_wait_until_gone, pid)
        stages = [*ROLES[1:], "learner"]
        await _until(lambda stages=stages, gone=gone: looks.first_since(stages, gone), "nothing advances")  # type: ignore[misc]
        figures[f"queue_{how}_seconds"] = (await looks.first_since(stages, gone) or time.time()) - began
        say(f"queue server {how}: the next entry after {figures[f'queue_{how}_seconds']:.2f} s")
        await _more_steps(stack.layout, 1)
    return figures | {"queue_seconds": max(figures.values())}


def _signal(stack: Stack, name: str, number: signal.Signals) -> int:
    """To the process that runs under this name; its pid. Raises RuntimeError where none does."""
    pid = next((status.pid for status in stack.status() if status.name == name), None)
    if pid is None:
        raise RuntimeError(f"{name} does not run")
    os.kill(pid, number)
    return pid


def _wait_until_gone(pid: int) -> float:
    """When it was no more, Unix seconds; a zombie is no more."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return time.time()
        if state in "ZX":
            return time.time()
        time.sleep(0.002)


# ---------------------------------------------------------------- waiting


async def _until(look: Callable[[], Any], told: str) -> None:
    ends = time.monotonic() + _PATIENCE_SECONDS
    while not await look():
        if time.monotonic() > ends:
            raise RuntimeError(f"{told} after {_PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)


async def _trained_after(layout: RunLayout, moment: float) -> float | None:
    """When the first step after a moment was done."""
    lines = layout.metrics_file.read_text().splitlines() if layout.metrics_file.exists() else []
    return first_step_since(lines, moment)


async def _more_steps(layout: RunLayout, count: int) -> None:
    for _ in range(count):
        now = time.time()
        await _until(lambda now=now: _trained_after(layout, now), "no step was trained")  # type: ignore[misc]


async def _until_checkpoint(layout: RunLayout) -> None:
    async def there() -> bool:
        return any((path / "state.json").exists() for path in layout.checkpoints.glob("step-*"))

    await _until(there, "there is no checkpoint")


# ---------------------------------------------------------------- the account
