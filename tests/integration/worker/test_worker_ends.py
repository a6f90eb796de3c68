"""The stage worker on a real queue server: drains, lost leases, workers and servers that die."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import redis
from structlog.testing import capture_logs

from orchestrator.local.queue_server import QueueServer
from services.common.errors import Unavailable
from services.common.stages.base import LEARNER_STAGE, Advance, Entry
from services.common.stages.entry import GROUP, RunKeys
from services.common.stages.redis_stages import RedisStages
from services.common.worker import Outcome
from tests.integration.worker.kit import STAGE, Each, Run, Slow, mark, until, working
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup


async def test_a_worker_that_leaves_waits_for_nobody(run: Run) -> None:
    """A drain hands groups whose work is away back as they were; another worker then does them."""
    tried = threading.Event()

    def away(_: RolloutGroup) -> Outcome:
        tried.set()
        raise Unavailable("nobody there")

    await run.admit(2)
    async with working(run.connect("a"), Each(away)):
        await until(tried.is_set)
    processor = Each(mark)
    async with working(run.connect("b"), processor):
        await run.receive(2)
    assert sorted(name for call in processor.calls for name in call) == ["g0", "g1"]
    assert len(processor.calls) == 1


async def test_a_drain_hands_partial_work_to_the_next_replica(run: Run, server: QueueServer) -> None:
    """What a drained worker had so far is continued by another, no attempt counted, nothing left behind."""
    await run.admit(2)
    first = Slow(ticks=3)
    async with working(run.connect("w1"), first) as worker:
        await until(first.begun.is_set)
        began = time.monotonic()
        await worker.drain()
        assert time.monotonic() - began < 10
    with redis.Redis.from_url(server.url) as raw:
        assert raw.xinfo_consumers(RunKeys(run.run_uid).stage(STAGE), GROUP) == []
    other = run.connect("look")
    handed = await other.take(STAGE, limit=4, block_seconds=5)
    assert [(each.group_id, each.attempts) for each in handed] == [("g0", 0), ("g1", 0)]
    assert all(len(RolloutGroup.FromString(each.payload).completions) == 1 for each in handed)
    await other.hand_back([(each, each.payload) for each in handed])
    await other.close()
    second = Slow(ticks=3)
    second.release.set()
    async with working(run.connect("w2"), second):
        groups = await run.receive(2)
    assert all(len(group.completions) == 3 for group in groups.values())


async def test_leases_are_renewed_while_the_processor_works(run: Run) -> None:
    """Work longer than a lease stays its worker's: nobody else gets it, it arrives once."""
    await run.admit(1)
    slow = Slow(ticks=1)
    rival = run.connect("rival", lease_seconds=0.4)
    async with working(run.connect("w", lease_seconds=0.4), slow, renew_seconds=0.05):
        await until(slow.begun.is_set)
        until_time = time.monotonic() + 1.5
        while time.monotonic() < until_time:
            assert await rival.take(STAGE, limit=1, block_seconds=0.05) == []
        slow.release.set()
        await run.receive(1)
    await rival.close()


async def test_leases_are_renewed_while_finished_work_cannot_be_moved(run: Run, server: QueueServer) -> None:
    """A full server takes nothing for longer than a lease: the work stays its worker's, and arrives later."""
    await run.admit(1)
    slow = Slow(ticks=1)
    rival = run.connect("rival", lease_seconds=0.4)
    async with working(run.connect("w", lease_seconds=0.4), slow, renew_seconds=0.05):
        await until(slow.begun.is_set)
        assert await rival.take(STAGE, limit=1, block_seconds=0.05) == []
        with redis.Redis.from_url(server.url) as raw:
            raw.config_set("maxmemory", "1")
            try:
                slow.release.set()
                until_time = time.monotonic() + 1.5
                while time.monotonic() < until_time:
                    assert await rival.take(STAGE, limit=1, block_seconds=0.05) == []
            finally:
                raw.config_set("maxmemory", "0")
        await run.receive(1)
    await rival.close()


async def test_work_on_a_lost_group_is_dropped(run: Run) -> None:
    """A worker whose group was claimed meanwhile drops its result; the claimer's is the one that arrives."""
    await run.admit(1)
    slow = Slow(ticks=1)
    rival = run.connect("rival", lease_seconds=0.2)
    # It renews too rarely for the lease that its rival goes by.
    with capture_logs() as logs:
        await _lose(run, slow, rival, logs)
    groups = await run.receive(1)
    assert groups["g0"].prompt.text == "the rival's"
    await rival.close()


async def _lose(
    run: Run, slow: Slow, rival: RedisStages, logs: Sequence[MutableMapping[str, object]]
) -> None:
    async with working(run.connect("w"), slow, renew_seconds=60):
        await until(slow.begun.is_set)

        claimed: list[Entry] = []

        async def claim() -> bool:
            claimed.extend(await rival.take(STAGE, limit=1, block_seconds=0.05))
            return bool(claimed)

        await until(claim)
        slow.release.set()
        [mine] = claimed
        assert mine.attempts == 1
        await until(lambda: any("work dropped" in str(line["event"]) for line in logs))
        group = RolloutGroup.FromString(mine.payload)
        group.prompt.text = "the rival's"
        move = Advance(entry=mine, destination=LEARNER_STAGE, payload=group.SerializeToString())
        assert await rival.advance([move]) == [True]


async def test_a_group_that_kills_its_workers_ends_at_the_learner(run: Run) -> None:
    """Three workers that vanish without a word use up the attempts; the fourth does not even try."""
    await run.admit(1)
    for name in ("a", "b", "c"):
        victim = run.connect(name, lease_seconds=0.05)
        taken: list[object] = []

        async def take(victim: RedisStages = victim, taken: list[object] = taken) -> bool:
            taken.extend(await victim.take(STAGE, limit=1, block_seconds=0.02))
            return bool(taken)

        await until(take)
        await victim.close()
    processor = Each(mark)
    async with working(run.connect("d", lease_seconds=0.05), processor):
        [group] = (await run.receive(1)).values()
    assert group.failure == common.ErrorInfo(
        code="UNAVAILABLE", message="its worker was lost 3 times", origin=STAGE
    )
    assert processor.calls == []


async def test_a_worker_survives_the_servers_death(tmp_path: Path) -> None:
    """The server is killed and started again during work: everything arrives once, nobody crashed."""
    server = QueueServer(tmp_path / "redis")
    server.start()
    run = Run(server.url)
    await run.learner.start_epoch(at_least=0)
    await run.admit(6)
    slow = Slow(ticks=1)
    # Patience below the outage: the worker's own waiting is what is tested.
    async with working(run.connect("w", patience=0.2), slow):
        await until(slow.begun.is_set)
        with redis.Redis.from_url(server.url) as raw:
            assert raw.waitaof(1, 0, 5000)[0] == 1
        server.kill()
        slow.release.set()
        await asyncio.sleep(0.5)
        server.start()
        groups = await run.receive(6)
        assert sorted(groups) == [f"g{number}" for number in range(6)]
        assert await run.standing() == frozenset()
    await run.learner.close()
    server.stop()


async def test_a_drain_while_the_server_is_away_ends(tmp_path: Path) -> None:
    """A worker that cannot hand anything back gives up at its drain: the leases end instead."""
    server = QueueServer(tmp_path / "redis")
    server.start()
    run = Run(server.url)
    await run.learner.start_epoch(at_least=0)
    await run.admit(1)
    slow = Slow(ticks=1)
    async with working(run.connect("w", patience=0.2), slow) as worker:
        await until(slow.begun.is_set)
        server.kill()
        await asyncio.wait_for(worker.drain(), 10)
    await run.learner.close()
    server.stop()
