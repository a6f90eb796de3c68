"""A run on a real queue server, its workers and what they do to groups."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from uuid import uuid4

from services.common.stages.base import LEARNER_STAGE, NewEntry
from services.common.stages.redis_stages import RedisStages
from services.common.worker import PATIENCE_SECONDS, Outcome, StageProcessor, StageWorker
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

STAGE = "policy"
BOUND_SECONDS = 30.0


class Run:
    """One run on the server: its learner, its workers, all groups that arrive."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.run_uid = f"run-{uuid4().hex[:8]}"
        self.learner = self.connect("learner-0")
        self.arrived: dict[str, RolloutGroup] = {}

    def connect(self, consumer: str, *, lease_seconds: float = 10.0, patience: float = 60.0) -> RedisStages:
        return RedisStages(
            self.url,
            self.run_uid,
            consumer=consumer,
            stages=(STAGE,),
            lease_seconds=lease_seconds,
            patience_seconds=patience,
        )

    async def admit(self, count: int, *, slip: Sequence[str] = (STAGE, LEARNER_STAGE)) -> None:
        await self.learner.admit(STAGE, [entry(number, slip) for number in range(count)])

    async def receive(self, count: int) -> dict[str, RolloutGroup]:
        """Until so many groups have arrived; each id once."""
        give_up = time.monotonic() + BOUND_SECONDS
        while len(self.arrived) < count:
            assert time.monotonic() < give_up, f"only {sorted(self.arrived)} arrived"
            taken = await self.learner.take(LEARNER_STAGE, limit=32, block_seconds=0.2)
            for each in taken:
                assert each.group_id not in self.arrived, "a group arrived twice"
                self.arrived[each.group_id] = RolloutGroup.FromString(each.payload)
            await self.learner.acknowledge(taken)
        return self.arrived

    async def standing(self) -> frozenset[str]:
        return (await self.learner.scan()).group_ids


def entry(number: int, slip: Sequence[str]) -> NewEntry:
    group = RolloutGroup(group_id=f"g{number}", admission_number=number, slip=slip)
    return NewEntry(group_id=group.group_id, admission_number=number, payload=group.SerializeToString())


@asynccontextmanager
async def working(
    queue: RedisStages,
    processor: StageProcessor,
    *,
    batch_groups: int = 4,
    renew_seconds: float = 3.0,
    patience_seconds: float = PATIENCE_SECONDS,
) -> AsyncIterator[StageWorker]:
    """A worker that runs inside the block and is drained at its end."""
    with ThreadPoolExecutor(1) as executor:
        worker = StageWorker(
            queue,
            STAGE,
            processor,
            executor,
            batch_groups=batch_groups,
            renew_seconds=renew_seconds,
            replica=queue.consumer,
            block_seconds=0.1,
            patience_seconds=patience_seconds,
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await worker.drain()
            await task
            await queue.close()


class Each(StageProcessor):
    """Applies a function to each group and notes who shared a call."""

    def __init__(self, function: Callable[[RolloutGroup], Outcome]) -> None:
        self._function = function
        self.calls: list[list[str]] = []

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        self.calls.append([group.group_id for group in groups])
        return [self._function(group) for group in groups]


def mark(group: RolloutGroup) -> Outcome:
    group.prompt.text = f"seen {group.group_id}"
    return Outcome("done")


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    give_up = time.monotonic() + BOUND_SECONDS
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < give_up, "it never happened"
        await asyncio.sleep(0.01)


class Slow(StageProcessor):
    """Adds a completion per tick until told to stop; finishes a group after `ticks` in all."""

    def __init__(self, ticks: int) -> None:
        self._ticks = ticks
        self.begun = threading.Event()
        self.release = threading.Event()

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        while any(len(group.completions) < self._ticks for group in groups):
            for group in groups:
                group.completions.add()
            self.begun.set()
            while not self.release.is_set():
                if stopping.wait(0.01):
                    return [Outcome("unfinished")] * len(groups)
        return [mark(group) for group in groups]
