"""A worker that is marked to drain: the same for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.common.drain_mark import DrainMark
from services.common.stages.base import LEARNER_STAGE, NewEntry
from services.common.worker import Outcome, StageWorker
from tests.contract.harness import Harness
from tests.contract.queue_steps import FIRST, fields, ids, learner_with, take
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

BOUND_SECONDS = 20.0


class Generating:
    """Adds a completion, then works on until it is told to let go or `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.calls: list[list[str]] = []

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        self.calls.append([group.group_id for group in groups])
        for group in groups:
            group.completions.add()
        while not self.release.is_set():
            if stopping.wait(0.01):
                return [Outcome("unfinished")] * len(groups)
        return [Outcome("done")] * len(groups)


@asynccontextmanager
async def working(
    harness: Harness, processor: Generating, mark: Path, *, behind: Callable[[], object] | None = None
) -> AsyncIterator[StageWorker]:
    """Inside the block. behind: what its thread does first."""
    with ThreadPoolExecutor(1) as executor:
        if behind is not None:
            executor.submit(behind)
        worker = StageWorker(
            harness.connect("w"),
            FIRST,
            processor,
            executor,
            batch_groups=4,
            block_seconds=0.1,
            mark=DrainMark(mark, poll_seconds=0.02),
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await worker.drain()
            await task


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"trimtab_stage_{name}", {"stage": FIRST})


async def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        await asyncio.sleep(0.01)


def group(number: int) -> NewEntry:
    message = RolloutGroup(group_id=f"g{number}", admission_number=number, slip=[FIRST, LEARNER_STAGE])
    return NewEntry(group_id=message.group_id, admission_number=number, payload=message.SerializeToString())


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """As the kubelet makes it: there, and empty."""
    path = tmp_path / "drain"
    path.write_text("")
    return path


async def test_a_marked_worker_hands_back_and_says_that_it_holds_nothing(
    harness: Harness, mark: Path
) -> None:
    """Partial work goes back at once, no attempt counted, and only then does the gauge say so."""
    learner = await learner_with(harness, 0)
    await learner.admit(FIRST, [group(number) for number in range(2)])
    processor = Generating()
    async with working(harness, processor, mark):
        await until(lambda: bool(processor.calls))
        assert (gauge("draining"), gauge("held_groups")) == (0, 2)
        mark.write_text("2026-01-02T03:04:05.000000Z")
        await until(lambda: gauge("draining") == 1)
        assert gauge("held_groups") == 0
        assert harness.consumers(FIRST) == set(), "it is no worker of this stage meanwhile"
        handed = await take(harness.connect("other"))
        assert [(each.group_id, each.attempts) for each in handed] == [("g0", 0), ("g1", 0)]
        assert all(len(RolloutGroup.FromString(each.payload).completions) == 1 for each in handed)


@pytest.mark.parametrize("how", ["drained", "marked"])
async def test_work_that_waits_for_its_thread_goes_back_at_once(
    harness: Harness, mark: Path, how: str
) -> None:
    """A call of the service's may keep the thread for minutes: groups behind it are handed back as they came."""
    learner = await learner_with(harness, 0)
    await learner.admit(FIRST, [group(number) for number in range(2)])
    processor, called = Generating(), threading.Event()
    async with working(harness, processor, mark, behind=called.wait) as worker:
        try:
            await until(lambda: gauge("held_groups") == 2)
            if how == "drained":
                async with asyncio.timeout(BOUND_SECONDS):
                    await worker.drain()
            else:
                mark.write_text("now")
            await until(lambda: gauge("held_groups") == 0)
            handed = await take(harness.connect("other"))
            assert [(each.group_id, each.attempts) for each in handed] == [("g0", 0), ("g1", 0)]
            assert processor.calls == []
        finally:
            called.set()


async def test_a_marked_worker_takes_nothing_until_the_mark_is_gone(harness: Harness, mark: Path) -> None:
    """What comes in the meantime stays where it is; unmarked, the same process takes it."""
    learner = await learner_with(harness, 0)
    processor = Generating()
    processor.release.set()
    async with working(harness, processor, mark):
        mark.write_text("now")
        await until(lambda: gauge("draining") == 1)
        await learner.admit(FIRST, [group(0)])
        # Many rounds of a worker that does take: each blocks for 0.1 s at most.
        await asyncio.sleep(0.3)
        assert processor.calls == []
        mark.write_text("")
        arrived = await learner.take(LEARNER_STAGE, limit=4, block_seconds=BOUND_SECONDS)
        assert ids(arrived) == ["g0"]
        assert gauge("draining") == 0


async def test_what_waits_inside_goes_back_too(harness: Harness, mark: Path) -> None:
    """Groups that were attempted before are worked on one by one; a mark hands back those that wait for it."""
    await learner_with(harness, 0)
    for number in range(3):
        message = RolloutGroup(group_id=f"g{number}", slip=[FIRST, LEARNER_STAGE])
        harness.inject(FIRST, fields(number, payload=message.SerializeToString(), attempts=1))
    processor = Generating()
    async with working(harness, processor, mark):
        await until(lambda: processor.calls == [["g0"]])
        mark.write_text("now")
        await until(lambda: gauge("draining") == 1)
        other = harness.connect("other")
        handed = [entry for _ in range(3) for entry in await take(other)]
        assert sorted((each.group_id, each.attempts) for each in handed) == [("g0", 1), ("g1", 1), ("g2", 1)]
