"""A whole run's rollouts, with a crash between any two commands: real intake, real queue, any interleaving.

    learner   admits and takes │ trains │ writes a checkpoint │ acknowledges │ crashes, and another resumes
    workers   take │ advance │ stall past their lease and wake │ crash, and come back under their name
    server    is killed and comes back │ comes back empty │ comes back as it was some commands ago

After every step: numbers add up, no group is lost, stands twice, advances twice from a stage, or is trained on twice;
who was replaced writes nothing. At the end the run goes on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Awaitable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
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
from services.common.arrays import set_array
from services.common.errors import LostOwnership
from services.common.spec.run import RunSpec
from services.common.stages.base import LEARNER_STAGE, Advance, Entry, NewEntry, Scan
from services.common.stages.consumer import Consumer
from services.learner import intake as intake_module
from services.learner.intake import Intake
from services.learner.prompts import Prompt
from services.models.manifest import Version
from services.models.wire import version_message
from tests.contract.harness import Harness, MemoryHarness, RedisHarness
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

STAGES, WORKERS = ("policy", "reward"), ("a", "b")
BATCH, STALENESS = 2, 1
BOUND = (STALENESS + 1) * BATCH
PROMPTS = [Prompt(f"p{at}", (), f"text {at}", np.array([1, 2], np.int32)) for at in range(7)]
SPEC = RunSpec.model_validate(
    {
        "model": {"path": "m"},
        "data": {"prompts": "p.jsonl"},
        "steps": 10_000,
        "rollout": {
            "batch_groups": BATCH,
            "max_staleness": STALENESS,
            "readmission_limit": 1000,
            "slip": list(STAGES),
            "reference": "branch",
        },
    }
)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Checkpoint:
    """What a learner leaves on disk, and what the model knows of that moment."""

    state: str
    epoch: int
    step: int
    trained: frozenset[str]


class Setup(Protocol):
    """A kind of server: what becomes of it, and what a copy of its state is."""

    def made(self) -> Harness: ...

    def restart(self) -> None: ...

    def copied(self) -> object: ...

    def come_back_as(self, copy: Any) -> None: ...


class Crashes(RuleBasedStateMachine):
    setup: ClassVar[Setup]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.harness = self.setup.made()
        self.copy: object = None
        # It came back as it was, and the learner has not found out yet what is gone.
        self.forgot = self.ever_forgot = False
        self.workers = {name: self.harness.connect(name) for name in WORKERS}
        self.held: dict[str, list[Entry]] = {name: [] for name in WORKERS}
        self.orphans: list[Entry] = []
        self.advanced: set[tuple[str, str]] = set()
        self.checkpoint: Checkpoint | None = None
        self.replaced: Consumer | None = None
        self.learners = self.epoch = 0

    def wait(self, awaitable: Awaitable[Result]) -> Result:
        async def awaited() -> Result:
            return await awaitable

        return self.loop.run_until_complete(awaited())

    def teardown(self) -> None:
        try:
            if self.learners:
                self.goes_on()
        finally:
            self.wait(self.harness.close())
            self.loop.close()

    # ---------------------------------------------------------------- the learner

    @initialize()
    def begin(self) -> None:
        self.start_learner()

    def start_learner(self) -> None:
        self.learners += 1
        self.queue = self.harness.connect(f"learner-{self.learners}", STAGES)
        self.intake = Intake(SPEC, run_uid="run", prompts=PROMPTS, queue=self.queue, watch_seconds=0)
        self.step, self.trained = 0, set[str]()
        if self.checkpoint is not None:
            self.intake.restore(json.loads(self.checkpoint.state))
            self.step, self.trained = self.checkpoint.step, set(self.checkpoint.trained)
        # As services/learner/epochs.py keeps it beside the checkpoints.
        epoch = self.wait(self.queue.start_epoch(at_least=self.epoch))
        assert epoch > self.epoch
        self.epoch = epoch
        self.publish()
        self.wait(self.intake.settle(resumed=self.checkpoint is not None))

    def publish(self) -> None:
        self.version = Version(self.epoch, self.step, f"{self.epoch}/{self.step}")
        self.intake.published(self.version, self.step)

    @rule()
    def learner_round(self) -> None:
        """Admits, takes what has come, trains where a batch is whole."""
        before, looks = len(self.intake.ledger.in_flight), iter((False, True))
        batch = self.wait(self.intake.batch(lambda: next(looks)))
        self.forgot = self.forgot and bool(self.lost(self.wait(self.queue.scan())))
        assert len(self.intake.ledger.in_flight) <= max(before, BOUND)
        if batch is None:
            return
        ids = {one.entry.group_id for one in batch}
        assert len(ids) == BATCH
        assert not ids & self.trained
        self.trained |= ids
        self.intake.trained(batch)
        self.step += 1
        self.publish()

    @rule(acknowledged=st.booleans())
    def write_checkpoint(self, acknowledged: bool) -> None:
        """The crash may come before what it covers is acknowledged."""
        state = json.dumps(self.intake.state())
        self.checkpoint = Checkpoint(state, self.epoch, self.step, frozenset(self.trained))
        if acknowledged:
            self.wait(self.intake.mending(self.intake.acknowledge))

    @rule()
    def learner_crashes(self) -> None:
        self.replaced = self.queue
        self.start_learner()

    @precondition(lambda self: self.replaced is not None)
    @rule()
    def the_replaced_learner_wakes(self) -> None:
        """It can neither admit, acknowledge, look nor put its own sign up again."""
        old = self.replaced
        assert old is not None
        if not self.wait(
            self.queue.scan()
        ).sentinel:  # nobody's server: see tests/contract/test_learner_stage.py
            return
        new = NewEntry(group_id="0-99999999-0", admission_number=99_999_999, payload=b"")
        held = [one.entry for one in self.intake._arrived.values()]
        writes = [old.admit(STAGES[0], [new]), old.scan(), old.restore_sentinel()]
        for write in (*writes, *([old.acknowledge(held)] if held else [])):
            with pytest.raises(LostOwnership):
                self.wait(write)

    # ---------------------------------------------------------------- workers

    @rule(name=st.sampled_from(WORKERS), stage=st.sampled_from(STAGES), limit=st.integers(1, 3))
    def worker_takes(self, name: str, stage: str, limit: int) -> None:
        self.held[name] += self.wait(self.workers[name].take(stage, limit=limit, block_seconds=0))

    @rule(name=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def worker_advances(self, name: str, count: int) -> None:
        """Also what another has taken over meanwhile: that is refused."""
        done, self.held[name] = self.held[name][:count], self.held[name][count:]
        for entry, moved in zip(done, self.move(name, done), strict=True):
            if moved:
                assert (entry.stage, entry.group_id) not in self.advanced
                self.advanced.add((entry.stage, entry.group_id))

    def move(self, name: str, entries: list[Entry]) -> list[bool]:
        moves = [
            Advance(
                entry=entry,
                destination=STAGES[1] if entry.stage == STAGES[0] else LEARNER_STAGE,
                payload=self.done(entry),
            )
            for entry in entries
        ]
        return self.wait(self.workers[name].advance(moves))

    def done(self, entry: Entry) -> bytes:
        """A completion of three tokens by the weights of now, or its score."""
        group = rollout.RolloutGroup.FromString(entry.payload)
        if entry.stage == STAGES[1]:
            group.completions[0].scores.add(stage="reward", score=common.Score(value=1.0))
            return group.SerializeToString()
        one = group.completions.add(finish_reason=common.FINISH_REASON_STOP)
        set_array(one.token_ids, np.array([3, 4, 5], np.int32))
        for field in (one.sampled_logprobs, one.reference_logprobs):
            set_array(field, np.zeros(3, np.float32))
        one.versions.add(version=version_message(self.version), start=0)
        return group.SerializeToString()

    @rule(name=st.sampled_from(WORKERS))
    def worker_stalls(self, name: str) -> None:
        """Past its lease, still holding what it took."""
        self.harness.silence(self.held[name])

    @rule(name=st.sampled_from(WORKERS))
    def worker_crashes(self, name: str) -> None:
        self.orphans += self.held[name]
        self.held[name] = []
        self.workers[name] = self.harness.connect(name)

    @precondition(lambda self: self.orphans)
    @rule()
    def leases_of_the_crashed_end(self) -> None:
        self.harness.silence(self.orphans)

    # ---------------------------------------------------------------- the server

    @rule()
    def server_is_killed(self) -> None:
        self.setup.restart()

    @rule()
    def server_comes_back_empty(self) -> None:
        self.harness.empty()
        self.copy = None

    @rule()
    def server_is_copied(self) -> None:
        """What a replica has that hears nothing any more."""
        self.copy = self.setup.copied()

    @precondition(lambda self: self.copy is not None)
    @rule()
    def server_forgets(self) -> None:
        """A failover to that replica. A learner that it does not know ends, as one that lost its ownership."""
        self.setup.come_back_as(self.copy)
        self.copy = None
        self.advanced.clear()
        self.forgot = self.ever_forgot = True
        try:
            self.wait(self.queue.scan())
        except LostOwnership:
            self.learner_crashes()

    # ---------------------------------------------------------------- always

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not self.learners:
            return
        scan, ledger = self.wait(self.queue.scan()), self.intake.ledger
        assert ledger.admitted == ledger.next_number
        assert sum(view.length for view in scan.stages) == len(scan.group_ids)
        if not scan.sentinel:  # emptied, and the learner has not looked yet
            return
        assert self.forgot or not self.lost(scan)
        assert all(one in ledger.in_flight or ledger.has_ended(one) for one in scan.group_ids)

    def lost(self, scan: Scan) -> set[str]:
        return set(self.intake.ledger.in_flight) - scan.group_ids - set(self.intake._arrived)

    def everything(self) -> list[Entry]:
        """All entries on the workers' stages, whoever holds them."""
        return [
            Entry(stage=stage, entry_id=entry_id, group_id="", admission_number=0, payload=b"")
            for stage in STAGES
            for entry_id in (self.harness.entries(stage) if self.wait(self.queue.scan()).sentinel else ())
        ]

    def goes_on(self) -> None:
        """All leases end once; then two batches more are trained, and every number is accounted for."""
        wanted = self.step + 2
        for _ in range(60):
            if self.step >= wanted:
                break
            self.harness.silence(self.everything())
            for name in WORKERS:
                for stage in STAGES:
                    while taken := self.wait(self.workers[name].take(stage, limit=9, block_seconds=0)):
                        self.move(name, taken)
            self.learner_round()
            self.nothing_is_lost_or_doubled()
        assert self.step >= wanted
        self.write_checkpoint(acknowledged=True)
        scan = self.wait(self.queue.scan())
        # What an older copy brought back is acknowledged by a later checkpoint.
        assert self.ever_forgot or scan.group_ids == set(self.intake.ledger.in_flight)


class InMemory:
    """The twin. Killed, it forgets nothing."""

    def made(self) -> Harness:
        self.harness = MemoryHarness()
        return self.harness

    def restart(self) -> None:
        return

    def copied(self) -> object:
        server = self.harness.server
        return deepcopy((server.epoch, server.token, server.streams, server.dead))

    def come_back_as(self, copy: Any) -> None:
        server = self.harness.server
        server.epoch, server.token, server.streams, server.dead = copy


class OnDisk:
    """A real server, killed -9; a copy of it is its append-only file."""

    def __init__(self, server: QueueServer) -> None:
        self.server = server
        self.file = server.folder / "appendonlydir"
        self.copies = 0

    def made(self) -> Harness:
        self.harness = RedisHarness(self.server, f"run-{uuid.uuid4().hex[:8]}")
        return self.harness

    def restart(self) -> None:
        self.harness.raw.close()
        self.server.kill()
        self.server.start()

    def copied(self) -> object:
        self.copies += 1
        return shutil.copytree(self.file, self.server.folder / f"copy-{self.copies}")

    def come_back_as(self, copy: Any) -> None:
        self.harness.raw.close()
        self.server.kill()
        shutil.rmtree(self.file)
        shutil.move(copy, self.file)
        self.server.start()


def run(setup: Setup, *, examples: int, steps: int) -> None:
    Crashes.setup = setup
    run_state_machine_as_test(
        Crashes,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_TAKE_SECONDS", 0)


def test_crashes_on_the_twin() -> None:
    """In memory."""
    run(InMemory(), examples=150, steps=50)


def test_crashes_on_a_server(server: QueueServer) -> None:
    """On a real one."""
    run(OnDisk(server), examples=15, steps=40)
