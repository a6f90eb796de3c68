"""The run of benchmarks.soak: random walks over the local stack, its learner ended again and again. Measures nothing.

    files ─▶ Stack (queue server, policy, reference, reward, learner) ─▶ endings at random moments ─▶ Stop
                                                                        ─▶ walks drawn from the last weights

Every ending is one of two, by a seeded draw: SIGKILL, after which the supervisor starts it again, or what a drain
does, SIGTERM, after which it is started here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak_logs import LogGrowth, sizes_of
from benchmarks.soak_memory import Recorder
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from services.common.spec.run import RunSpec
from services.common.stages.tools import RedisTools
from services.common.tasks.randomwalks import nodes_of, random_walks
from trimtab import LearnerClient, PolicyClient, TrimtabClientError
from trimtab.common.v1 import common_pb2 as common

REWARD = {"name": "reward", "function": {"name": "services.common.tasks.randomwalks:score"}}
LOOK_SECONDS = 2.0
SHORTEST, LONGEST = 3.0, 300.0
WALKS_EACH = 100
THREADS = 2
_TOKENS = 10
LOG_BYTES = 256 * 2**10
"""Beyond it a log is set aside: small, so that it happens."""
_STEPS = 10_000_000
"""More than any soak does: it is told to stop."""
# Kills are the point here: none of them is a reason to give a service up.
_LIMITS = Limits(
    backoff_first_seconds=0.5, backoff_most_seconds=2.0, fast_failures=1_000_000, same_errors=1_000_000
)


@dataclass(slots=True)
class Soaked:
    """What is left to look at when it is over."""

    layout: RunLayout
    recorder: Recorder
    logs: LogGrowth = field(default_factory=LogGrowth)
    ends: list[tuple[float, str]] = field(default_factory=list)
    """Seconds and how: kill or term."""
    standing: frozenset[str] = frozenset()
    """Groups on any stage's stream after the last checkpoint."""
    dead_letters: int = 0
    optimality: float = 0.0


def spec_of(files: Path, seed: int) -> RunSpec:
    """GRPO on the walks, eight from each of the 20 starts a step, up to one step stale.

    A little KL keeps the load the same all along. Without it a perfect policy has no gradient but that of chance:
    after half an hour walks went on beyond their goals, from 3.6 tokens to 10, and the learner holds larger batches.
    """
    return RunSpec.model_validate(
        {
            "name": "soak",
            "seed": seed,
            "steps": _STEPS,
            "model": {"path": str(files / "model"), "dtype": "float32", "threads": 1, "device": "cpu"},
            "data": {"prompts": str(files / "prompts.jsonl")},
            "sampling": {"max_new_tokens": _TOKENS},
            "algorithm": {"kind": "grpo", "num_generations": 8, "beta": 0.02},
            "optimiser": {"learning_rate": 2e-4, "warmup_steps": 10},
            "rollout": {"batch_groups": 20, "max_staleness": 1, "keep": True},
            "checkpoint": {"every_steps": 10},
        }
    )


def make_files(folder: Path) -> None:
    """Model and prompts, in a process of its own: this one is measured, and has no torch."""
    process = multiprocessing.get_context("spawn").Process(target=_make_files, args=(folder,))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the model's files were not made: status {process.exitcode}")


def _make_files(folder: Path) -> None:
    from tests.e2e.cluster.walks import make_files as make

    make(folder)


async def soak(
    folder: Path, seconds: float, seed: int, mean_seconds: float, say: Callable[[str], None]
) -> Soaked:
    """Run for so long, the learner ended every `mean_seconds` on average; then a last checkpoint and a look at all."""
    # This process is one of the measured: asyncio's own pool begins another thread whenever calls happen to overlap.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    make_files(folder / "files")
    spec = spec_of(folder / "files", seed)
    soaked = Soaked(RunLayout.prepare(folder / "run"), Recorder())
    stack = Stack(
        soaked.layout,
        spec,
        settings={"reward": {"models": [REWARD]}},
        env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        limits=_LIMITS,
        on_event=say,
        log_bytes=LOG_BYTES,
    )
    async with stack:
        recording = asyncio.create_task(_record(stack, soaked))
        try:
            await stack.ready("learner")
            await _endings(stack, soaked, time.monotonic() + seconds, random.Random(seed), mean_seconds)
            say("the learner is told to stop")
            await stop_learner(stack)
        finally:
            recording.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await recording
        soaked.optimality = await asyncio.to_thread(optimality_of, stack, soaked.layout, seed)
        soaked.standing, soaked.dead_letters = await left_on_streams(stack)
    return soaked


async def _record(stack: Stack, soaked: Soaked) -> None:
    while True:
        pids: dict[str, int | None] = {status.name: status.pid for status in stack.status()}
        await asyncio.to_thread(soaked.recorder.look, pids)
        soaked.recorder.note("orchestrator", os.getpid())
        soaked.logs.look(sizes_of(soaked.layout))
        await asyncio.sleep(LOOK_SECONDS)


async def _endings(stack: Stack, soaked: Soaked, until: float, draws: random.Random, mean: float) -> None:
    while True:
        wait = min(max(LONGEST, mean), max(SHORTEST, draws.expovariate(1 / mean)))
        how = draws.choice(("kill", "term"))
        if time.monotonic() + wait >= until:
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            return
        # The next wait begins at once: an ending may meet a learner that loads.
        await asyncio.sleep(wait)
        pid = next((status.pid for status in stack.status() if status.name == "learner"), None)
        stack.supervisor.raise_failures()
        if pid is None:
            continue
        soaked.ends.append((soaked.recorder.seconds, how))
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            await stack.remove("learner")
            await stack.add("learner")


async def stop_learner(stack: Stack) -> None:
    """A last checkpoint and the end, however often the learner has to be asked: it may be loading."""
    address = await stack.ready("learner")
    while True:
        try:
            await asyncio.to_thread(_ask_to_stop, address)
            break
        except TrimtabClientError:
            await asyncio.sleep(0.5)
            await stack.ready("learner")
    await stack.ended("learner")


def _ask_to_stop(address: str) -> None:
    with LearnerClient(address) as client:
        client.stop(timeout_seconds=5)


def optimality_of(stack: Stack, layout: RunLayout, seed: int) -> float:
    """Mean over the starts of drawn walks, by the policy service, of exactly the weights that were trained."""
    walks = random_walks()
    digest = json.loads((layout.root / "published.json").read_text())["digest"]
    with PolicyClient(stack.endpoint("policy")) as client:
        results = client.generate(
            walks.prompts,
            max_new_tokens=_TOKENS,
            num_completions=WALKS_EACH,
            seed=seed,
            required_version=common.WeightsVersion(digest=digest),
        )
    values = [
        walks.optimality(nodes_of(prompt + one.text))
        for prompt, result in zip(walks.prompts, results, strict=True)
        for one in result.completions
    ]
    return sum(values) / len(values)


async def left_on_streams(stack: Stack) -> tuple[frozenset[str], int]:
    """Groups that stand on any stage, and how many dead letters there are."""
    tools = RedisTools(stack.queue_url, stack.run_uid)
    try:
        return (await tools.view()).group_ids, len(await tools.dead_letters(limit=1000))
    finally:
        await tools.close()
