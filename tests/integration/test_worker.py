"""The stage worker on a real queue server: failures, poison, drains, lost leases, a server that dies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from structlog.testing import capture_logs

from orchestrator.local.queue_server import QueueServer
from services.common.errors import Overloaded, Unavailable
from services.common.failures import error_info
from services.common.stages.base import LEARNER_STAGE, Advance, Entry, NewEntry
from services.common.stages.entry import GROUP, RunKeys
from services.common.stages.redis_stages import RedisStages
from services.common.worker import PATIENCE_SECONDS, Outcome, StageProcessor, StageWorker, outcome_of_error
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

STAGE = "policy"
BOUND_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.stop()


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


@pytest.fixture
async def run(server: QueueServer) -> AsyncIterator[Run]:
    made = Run(server.url)
    await made.learner.start_epoch(at_least=0)
    yield made
    await made.learner.close()


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


async def test_groups_go_through_edited_in_place(run: Run) -> None:
    """Every group arrives once, as the processor left it, its slip at the learner, in batches."""
    await run.admit(10)
    processor = Each(mark)
    async with working(run.connect("w"), processor):
        groups = await run.receive(10)
    assert {name: group.prompt.text for name, group in groups.items()} == {
        f"g{number}": f"seen g{number}" for number in range(10)
    }
    assert all(list(group.slip) == [LEARNER_STAGE] for group in groups.values())
    assert not any(group.HasField("failure") for group in groups.values())
    assert max(len(call) for call in processor.calls) == 4
    assert await run.standing() == frozenset()


async def test_fields_of_a_newer_contract_survive_a_stage(run: Run) -> None:
    """A field of the message that this release does not know arrives untouched."""
    unknown = b"\x92\x3f\x05hello"
    group = RolloutGroup(group_id="g0", slip=[STAGE, LEARNER_STAGE]).SerializeToString() + unknown
    await run.learner.admit(STAGE, [NewEntry(group_id="g0", admission_number=0, payload=group)])
    async with working(run.connect("w"), Each(mark)):
        [arrived] = (await run.receive(1)).values()
    assert unknown in arrived.SerializeToString()


async def test_a_poison_group_fails_alone(run: Run) -> None:
    """A group that makes its batch raise is tried three times; the others pass after having failed once."""

    def poison(group: RolloutGroup) -> Outcome:
        if group.group_id == "g1":
            raise ValueError("cannot\ndigest this")
        return mark(group)

    await run.admit(4)
    processor = Each(poison)
    async with working(run.connect("w"), processor):
        groups = await run.receive(4)
    failed = groups.pop("g1")
    assert failed.failure == common.ErrorInfo(
        code="INTERNAL", message="ValueError: cannot digest this", origin=STAGE
    )
    assert list(failed.slip) == [LEARNER_STAGE]
    assert failed.prompt.text == ""
    assert all(group.prompt.text for group in groups.values())
    assert processor.calls[0] == ["g0", "g1", "g2", "g3"]
    assert all(len(call) == 1 for call in processor.calls[1:])
    assert sum(call == ["g1"] for call in processor.calls) == 2


async def test_a_failed_outcome_keeps_its_error(run: Run) -> None:
    """An error the processor names itself reaches the learner as it is, after three attempts."""
    told = error_info(Overloaded("no room"), origin="elsewhere")
    await run.admit(1)
    processor = Each(lambda _: Outcome("failed", told))
    async with working(run.connect("w"), processor):
        [group] = (await run.receive(1)).values()
    assert group.failure == common.ErrorInfo(code="RESOURCE_EXHAUSTED", message="no room", origin="elsewhere")
    assert processor.calls == [["g0"]] * 3


async def test_work_that_is_away_for_a_while_costs_no_attempt(run: Run) -> None:
    """Where what scores is full or away, groups wait for it, together, and arrive whole; the others are not redone."""
    asked: dict[str, int] = {}

    def comes_back(group: RolloutGroup) -> Outcome:
        asked[group.group_id] = asked.get(group.group_id, 0) + 1
        if group.group_id == "g0" or asked[group.group_id] > 3:
            return mark(group)
        return outcome_of_error(Overloaded("4 rows wait"), origin=STAGE)

    await run.admit(3)
    processor = Each(comes_back)
    async with working(run.connect("w"), processor):
        groups = await run.receive(3)
    assert not any(group.HasField("failure") for group in groups.values())
    assert asked == {"g0": 1, "g1": 4, "g2": 4}
    assert processor.calls[1:] == [["g1", "g2"]] * 3


async def test_patience_with_what_is_away_ends(run: Run) -> None:
    """After `patience_seconds` a group has failed once; after its last attempt the learner hears why."""

    def away(_: RolloutGroup) -> Outcome:
        raise Unavailable("nobody there")

    await run.admit(1)
    async with working(run.connect("w"), Each(away), patience_seconds=0.3):
        [group] = (await run.receive(1)).values()
    assert group.failure == common.ErrorInfo(code="UNAVAILABLE", message="nobody there", origin=STAGE)


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


async def test_a_payload_that_is_no_group_reaches_the_learner_as_a_failure(run: Run) -> None:
    """Rubbish never reaches the processor, and arrives as a fresh group with its identity and failure."""
    rubbish = NewEntry(group_id="g7", admission_number=7, payload=b"\xff\xff\xff rubbish")
    await run.learner.admit(STAGE, [rubbish])
    processor = Each(mark)
    async with working(run.connect("w"), processor):
        [group] = (await run.receive(1)).values()
    assert (group.group_id, group.admission_number, group.failure.code) == ("g7", 7, "DATA_LOSS")
    assert processor.calls == []


async def test_a_group_of_another_stage_fails(run: Run) -> None:
    """A slip that does not begin with this stage is an error, not a silent pass."""
    await run.admit(1, slip=("reward", LEARNER_STAGE))
    async with working(run.connect("w"), Each(mark)):
        [group] = (await run.receive(1)).values()
    assert "does not begin with policy" in group.failure.message


async def test_a_destination_that_is_no_stream_fails_the_group(run: Run, server: QueueServer) -> None:
    """A key of another type in the way costs attempts, never the group."""
    with redis.Redis.from_url(server.url) as raw:
        raw.set(RunKeys(run.run_uid).stage("broken"), "x")
    await run.admit(1, slip=(STAGE, "broken", LEARNER_STAGE))
    async with working(run.connect("w"), Each(mark)):
        [group] = (await run.receive(1)).values()
    assert group.failure.code == "DATA_LOSS"
    assert "not a stream" in group.failure.message


async def test_a_wrong_number_of_outcomes_fails_the_batch(run: Run) -> None:
    """Outcomes that cannot be matched to groups are an error of the processor."""

    class Short(Each):
        def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
            return super().process(groups, stopping)[1:]

    await run.admit(2)
    async with working(run.connect("w"), Short(mark)):
        groups = await run.receive(2)
    assert {group.failure.message for group in groups.values()} == {
        "the processor gave 0 outcomes for 1 groups"
    }


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
