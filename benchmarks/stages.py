"""Measures the stage queue: whole rollout groups through policy, reference, reward, learner.

A real server with the run's settings, each stage its own process with stub work: it parses the group, sets
the arrays its stage owns, serialises it again. n = 1, 32 prompt tokens, batches of at most 32, leases on.

    groups_per_second       128 completion tokens, admission kept full by backpressure
    groups_per_second_long  2,048 completion tokens
    p99_milliseconds        from admission to the learner's receipt, 200 groups/s, 128 tokens
    cpu_…_per_group         processor time of all processes together, which other load disturbs least
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import harness
from orchestrator.local.queue_server import QueueServer
from services.common.arrays import set_array
from services.common.stages.base import LEARNER_STAGE, Entry, NewEntry
from services.common.stages.redis_stages import RedisStages
from services.common.worker import Outcome, StageWorker
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import Completion, RolloutGroup

SLIP = ("policy", "reference", "reward", LEARNER_STAGE)
PROMPT_TOKENS = 32
BATCH_GROUPS = 32
IN_FLIGHT = 8 * BATCH_GROUPS
RUN_UID = "benchmark"


@dataclass(frozen=True, slots=True)
class Plan:
    """One measurement: completion length, groups per second (0: as many as fit), seconds."""

    tokens: int
    rate: float
    warm_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the learner saw within its seconds."""

    groups: int
    seconds: float
    cpu_seconds: float
    latencies: list[float]


# ------------------------------------------------------------------ the stages


class StubStage:
    """Sets the arrays that a stage owns, as a model's results would be."""

    def __init__(self, stage: str, tokens: int) -> None:
        self._set = {"policy": self._generate, "reference": self._refer, "reward": self._score}[stage]
        self._ids = np.arange(tokens, dtype=np.int32)
        self._logprobs = np.linspace(-3.0, -0.1, tokens, dtype=np.float32)

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:  # noqa: ARG002
        """See StageProcessor."""
        for group in groups:
            self._set(group)
        return [Outcome("done")] * len(groups)

    def _generate(self, group: RolloutGroup) -> None:
        completion = group.completions.add(finish_reason=common.FINISH_REASON_STOP)
        set_array(completion.token_ids, self._ids)
        set_array(completion.raw_logprobs, self._logprobs)
        set_array(completion.sampled_logprobs, self._logprobs)

    def _refer(self, group: RolloutGroup) -> None:
        for completion in group.completions:
            set_array(completion.reference_logprobs, self._logprobs)

    def _score(self, group: RolloutGroup) -> None:
        for completion in group.completions:
            completion.scores.add(stage="reward").score.value = 1.0


async def work(url: str, stage: str, tokens: int) -> None:
    """One worker process, until SIGTERM."""
    queue = RedisStages(url, RUN_UID, consumer=f"{stage}-0")
    with ThreadPoolExecutor(1) as executor:
        worker = StageWorker(queue, stage, StubStage(stage, tokens), executor, batch_groups=BATCH_GROUPS)
        drains: list[asyncio.Task[None]] = []
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: drains.append(asyncio.create_task(worker.drain()))
        )
        await worker.run()
        await asyncio.gather(*drains)
    await queue.close()


# ------------------------------------------------------------------ the learner


class StubLearner:
    """Admits with backpressure, receives, checks and acknowledges."""

    def __init__(self, queue: RedisStages, plan: Plan) -> None:
        self._queue = queue
        self._plan = plan
        self._admitted_at: dict[str, float] = {}
        self._number = 0
        self._received: list[tuple[float, float]] = []

    async def measure(self, processes: list[int]) -> Seen:
        """Run warm-up and measurement."""
        await self._queue.start_epoch(at_least=0)
        admitting = asyncio.create_task(self._admit_all())
        began = time.perf_counter()
        await self._receive_until(began + self._plan.warm_seconds)
        start, cpu = time.perf_counter(), _cpu_seconds(processes)
        self._received.clear()
        await self._receive_until(start + self._plan.seconds)
        seconds, spent = time.perf_counter() - start, _cpu_seconds(processes) - cpu
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)
        return Seen(len(self._received), seconds, spent, [late for _, late in self._received])

    async def _admit_all(self) -> None:
        if not self._plan.rate:
            while True:
                room = IN_FLIGHT - len(self._admitted_at)
                if room >= BATCH_GROUPS:
                    await self._admit(BATCH_GROUPS)
                else:
                    await asyncio.sleep(0.002)
        due = time.perf_counter()
        while True:
            due += 1 / self._plan.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self._admit(1)

    async def _admit(self, count: int) -> None:
        entries = [self._new() for _ in range(count)]
        now = time.perf_counter()
        self._admitted_at.update((entry.group_id, now) for entry in entries)
        await self._queue.admit(SLIP[0], entries)

    def _new(self) -> NewEntry:
        self._number += 1
        group = RolloutGroup(
            group_id=f"group-{self._number:08d}",
            run_uid=RUN_UID,
            admission_number=self._number,
            slip=SLIP,
        )
        group.prompt.prompt_id = f"prompt-{self._number % 1000}"
        set_array(group.prompt.token_ids, np.arange(PROMPT_TOKENS, dtype=np.int32))
        return NewEntry(
            group_id=group.group_id, admission_number=self._number, payload=group.SerializeToString()
        )

    async def _receive_until(self, end: float) -> None:
        while time.perf_counter() < end:
            entries = await self._queue.take(LEARNER_STAGE, limit=BATCH_GROUPS, block_seconds=0.2)
            now = time.perf_counter()
            for entry in entries:
                self._received.append((now, now - self._admitted_at.pop(entry.group_id)))
                self._check(entry)
            if entries:
                await self._queue.acknowledge(entries)

    def _check(self, entry: Entry) -> None:
        """What arrives is whole: all three arrays, a score, no failure."""
        group = RolloutGroup.FromString(entry.payload)
        completion: Completion = group.completions[0]
        arrays = (completion.raw_logprobs, completion.sampled_logprobs, completion.reference_logprobs)
        whole = all(len(array.data) == 4 * self._plan.tokens for array in arrays)
        if not whole or not completion.scores or group.HasField("failure"):
            raise RuntimeError(f"{entry.group_id} did not come through whole: {group.failure}")


async def learn(url: str, plan: Plan, processes: list[int], answer: Connection) -> None:
    """The learner process: measures and sends what it saw."""
    queue = RedisStages(url, RUN_UID, consumer="learner-0", stages=SLIP)
    seen = await StubLearner(queue, plan).measure([*processes, os.getpid()])
    await queue.close()
    answer.send(seen)


def _cpu_seconds(processes: list[int]) -> float:
    times = [psutil.Process(process).cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


# ------------------------------------------------------------------ the whole


def _main(function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    asyncio.run(function(*arguments))


def measure_once(plan: Plan) -> Seen:
    """Start everything anew, measure, end everything."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        server = QueueServer(Path(folder))
        server.start()
        workers = [
            context.Process(target=_main, args=(work, server.socket_url, stage, plan.tokens), daemon=True)
            for stage in SLIP[:-1]
        ]
        try:
            for worker in workers:
                worker.start()
            pids = [worker.pid for worker in workers if worker.pid] + [server.pid or 0]
            here, there = context.Pipe(duplex=False)
            learner = context.Process(
                target=_main, args=(learn, server.socket_url, plan, pids, there), daemon=True
            )
            learner.start()
            there.close()
            seen: Seen = here.recv()
            learner.join()
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
            server.stop()
    return seen


def measure(quick: bool) -> dict[str, float]:
    """All figures."""
    seconds = 2.0 if quick else 8.0
    short = measure_once(Plan(tokens=128, rate=0, warm_seconds=1.5, seconds=seconds))
    long = measure_once(Plan(tokens=2048, rate=0, warm_seconds=1.5, seconds=seconds))
    paced = measure_once(Plan(tokens=128, rate=200, warm_seconds=1.5, seconds=seconds))
    return {
        "groups_per_second": short.groups / short.seconds,
        "groups_per_second_long": long.groups / long.seconds,
        "p99_milliseconds": 1000 * float(np.quantile(paced.latencies, 0.99)),
        "p50_milliseconds": 1000 * float(np.quantile(paced.latencies, 0.5)),
        "paced_groups_per_second": paced.groups / paced.seconds,
        "cpu_microseconds_per_group": 1e6 * short.cpu_seconds / max(1, short.groups),
        "cpu_microseconds_per_group_long": 1e6 * long.cpu_seconds / max(1, long.groups),
    }


BARS = {
    "groups_per_second": harness.at_least(2000),
    "groups_per_second_long": harness.at_least(200),
    "p99_milliseconds": harness.at_most(50),
}

if __name__ == "__main__":
    harness.run("stages", measure, BARS)
