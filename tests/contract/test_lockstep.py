"""The twin in memory and a real server, driven alike by random steps, must answer alike.

After every step: no group is lost, none stands twice, both scans agree.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.local.queue_server import QueueServer
from services.common.stages.base import LEARNER_STAGE, Advance, Entry, NewEntry, Scan
from services.common.stages.consumer import Consumer
from tests.contract.harness import Harness, MemoryHarness, RedisHarness

STAGES = ("policy", "reward")
WORKERS = ("a", "b", "c")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pair:
    """The same thing on both sides: a consumer, or an entry."""

    twin: Any
    real: Any


def told(entry: Entry) -> tuple[str, str, int, int, bytes]:
    """All of an entry but its id, which the servers choose."""
    return entry.stage, entry.group_id, entry.stored_attempts, entry.deliveries, entry.payload


def counted(scan: Scan) -> dict[str, tuple[int, int, frozenset[str]]]:
    return {view.stage: (view.length, view.pending, view.group_ids) for view in scan.stages}


class Lockstep(RuleBasedStateMachine):
    server: ClassVar[QueueServer]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.twin: Harness = MemoryHarness()
        self.real: Harness = RedisHarness(self.server, f"run-{uuid.uuid4().hex[:8]}")
        self.workers = {name: self.connect(name) for name in WORKERS}
        # Everything a worker ever took: also what is another's by now, which must be refused.
        self.taken: dict[str, list[Pair]] = {name: [] for name in WORKERS}
        self.received: list[Pair] = []
        self.living: set[str] = set()
        self.admitted = 0
        self.learners = 0

    def teardown(self) -> None:
        self.wait(self.real.close())
        self.loop.close()

    def wait(self, awaitable: Awaitable[Result]) -> Result:
        async def awaited() -> Result:
            return await awaitable

        return self.loop.run_until_complete(awaited())

    def connect(self, name: str) -> Pair:
        pair = Pair(self.twin.connect(name, STAGES), self.real.connect(name, STAGES))
        for queue in (pair.twin, pair.real):
            # Both connected from here on, so that leases end at the same time for both.
            assert self.wait(queue.take("nowhere", limit=1, block_seconds=0)) == []
        return pair

    def both(
        self, pair: Pair, act: Callable[[Consumer, Callable[[Pair], Entry]], Awaitable[Result]]
    ) -> tuple[Result, Result]:
        """The same call on both sides; `act` gets the consumer and what picks that side of a pair."""
        return self.wait(act(pair.twin, lambda each: each.twin)), self.wait(
            act(pair.real, lambda each: each.real)
        )

    def alike(
        self, pair: Pair, act: Callable[[Consumer, Callable[[Pair], Entry]], Awaitable[Result]]
    ) -> Result:
        one, other = self.both(pair, act)
        assert one == other
        return one

    def take(self, pair: Pair, stage: str, limit: int) -> list[Pair]:
        twin, real = self.both(pair, lambda queue, _: queue.take(stage, limit=limit, block_seconds=0))
        assert [told(entry) for entry in twin] == [told(entry) for entry in real]
        assert len(twin) <= limit
        assert len(twin) == 1 or not any(entry.attempts for entry in twin)
        return [Pair(*each) for each in zip(twin, real, strict=True)]

    # ---------------------------------------------------------------- the learner

    @initialize()
    def begin(self) -> None:
        self.start_learner()

    @rule()
    def begin_again(self) -> None:
        """Another learner starts, the one before is fenced from now on."""
        self.start_learner()

    def start_learner(self) -> None:
        self.learners += 1
        self.learner = self.connect(f"learner-{self.learners}")
        self.received = []
        self.alike(self.learner, lambda queue, _: queue.start_epoch(at_least=0))

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        numbers = range(self.admitted, self.admitted + count)
        entries = [
            NewEntry(group_id=f"g{number}", admission_number=number, payload=b"new") for number in numbers
        ]
        self.both(self.learner, lambda queue, _: queue.admit(STAGES[0], entries))
        self.admitted += count
        self.living |= {entry.group_id for entry in entries}

    @rule(limit=st.integers(1, 4))
    def receive(self, limit: int) -> None:
        arrived = self.take(self.learner, LEARNER_STAGE, limit)
        known = {pair.twin.group_id for pair in self.received}
        assert not known & {pair.twin.group_id for pair in arrived}
        self.received += arrived

    @precondition(lambda self: self.received)
    @rule(count=st.integers(1, 3))
    def acknowledge(self, count: int) -> None:
        done, self.received = self.received[:count], self.received[count:]
        self.both(self.learner, lambda queue, side: queue.acknowledge([side(pair) for pair in done]))
        self.living -= {pair.twin.group_id for pair in done}

    @precondition(lambda self: self.received)
    @rule()
    def bury_and_requeue(self) -> None:
        pair = self.received.pop()
        self.both(self.learner, lambda queue, side: queue.bury(side(pair), reason="why"))
        for harness in (self.twin, self.real):
            tools = harness.tools()
            [letter] = self.wait(tools.dead_letters(limit=10))
            assert (letter.group_id, letter.reason) == (pair.twin.group_id, "why")
            assert self.wait(tools.requeue(letter.letter_id))

    # ---------------------------------------------------------------- workers

    @rule(name=st.sampled_from(WORKERS), stage=st.sampled_from(STAGES), limit=st.integers(1, 4))
    def work(self, name: str, stage: str, limit: int) -> None:
        self.taken[name] += self.take(self.workers[name], stage, limit)

    def chosen(self, name: str, data: st.DataObject) -> list[Pair]:
        held = self.taken[name]
        if not held:
            return []
        at = data.draw(st.integers(0, len(held) - 1))
        return held[at : at + data.draw(st.integers(1, 3))]

    @rule(name=st.sampled_from(WORKERS), data=st.data())
    def advance(self, name: str, data: st.DataObject) -> None:
        pairs = self.chosen(name, data)
        to_learner = data.draw(st.booleans())

        def moves(side: Callable[[Pair], Entry]) -> list[Advance]:
            entries = [side(pair) for pair in pairs]
            return [
                Advance(
                    entry=entry,
                    destination=LEARNER_STAGE if to_learner or entry.stage == STAGES[1] else STAGES[1],
                    payload=entry.payload + b"+",
                )
                for entry in entries
            ]

        self.alike(self.workers[name], lambda queue, side: queue.advance(moves(side)))

    @rule(name=st.sampled_from(WORKERS), data=st.data())
    def hand_back(self, name: str, data: st.DataObject) -> None:
        pairs = self.chosen(name, data)
        self.alike(
            self.workers[name],
            lambda queue, side: queue.hand_back([(side(pair), side(pair).payload + b"~") for pair in pairs]),
        )

    @rule(name=st.sampled_from(WORKERS), data=st.data())
    def fail(self, name: str, data: st.DataObject) -> None:
        for pair in self.chosen(name, data):
            self.fail_one(name, pair)

    def fail_one(self, name: str, pair: Pair) -> None:
        self.alike(self.workers[name], lambda queue, side: queue.fail(side(pair), payload_if_last=b"failed"))

    @rule(name=st.sampled_from(WORKERS), data=st.data())
    def renew(self, name: str, data: st.DataObject) -> None:
        pairs = self.chosen(name, data)
        self.alike(self.workers[name], lambda queue, side: queue.renew([side(pair) for pair in pairs]))

    @rule(name=st.sampled_from(WORKERS), data=st.data())
    def go_silent(self, name: str, data: st.DataObject) -> None:
        pairs = self.chosen(name, data)
        self.twin.silence([pair.twin for pair in pairs])
        self.real.silence([pair.real for pair in pairs])

    @rule(name=st.sampled_from(WORKERS))
    def leave(self, name: str) -> None:
        self.both(self.workers[name], lambda queue, _: queue.leave())
        for stage in STAGES:
            assert self.twin.consumers(stage) == self.real.consumers(stage)

    # ---------------------------------------------------------------- always

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not self.learners:
            return
        twin, real = self.both(self.learner, lambda queue, _: queue.scan())
        assert counted(twin) == counted(real)
        assert real.group_ids == self.living
        assert sum(view.length for view in real.stages) == len(self.living)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.stop()


def test_the_twin_and_the_server_walk_in_step(server: QueueServer) -> None:
    """Whatever workers and learners do, in whatever order, both queues answer the same and lose nothing."""
    Lockstep.server = server
    run_state_machine_as_test(
        Lockstep,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
