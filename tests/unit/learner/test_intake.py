"""Rollouts on their way back, on the queue's twin: sorting, waiting, re-admission, a queue that goes away."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from services.common.arrays import set_array
from services.common.errors import Corrupted, Mismatch, ServiceError, Unavailable
from services.common.spec.run import RunSpec
from services.common.stages.base import Advance, Entry, NewEntry
from services.common.stages.memory_stages import MemoryServer, MemoryStages, MemoryTools
from services.learner.intake import Arrived, Intake
from services.learner.prompts import Prompt
from services.models.manifest import Version
from services.models.wire import version_message
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

BATCH = 2
DIGESTS = ["first", "second", "third"]
PROMPTS = [Prompt(f"p{at}", (), f"text {at}", np.array([1, 2], np.int32)) for at in range(7)]


class Bench:
    """An intake, and a worker that does what the test says with each group."""

    def __init__(
        self, *, max_staleness: int = 0, readmission_limit: int = 3, server: MemoryServer | None = None
    ) -> None:
        rollouts = {
            "batch_groups": BATCH,
            "max_staleness": max_staleness,
            "readmission_limit": readmission_limit,
            "slip": ["policy", "reward"],
            "reference": "branch",
        }
        self.spec = RunSpec.model_validate(
            {"model": {"path": "m"}, "data": {"prompts": "p.jsonl"}, "steps": 9, "rollout": rollouts}
        )
        self.server = server or MemoryServer()
        self.queue = MemoryStages(self.server, consumer="learner", stages=self.spec.rollout.slip)
        self.worker = MemoryStages(self.server, consumer="worker")
        self.intake = Intake(self.spec, run_uid="run", prompts=PROMPTS, queue=self.queue, watch_seconds=1000)

    async def begin(self) -> Bench:
        await self.queue.start_epoch(at_least=0)
        self.at_step(0)
        await self.intake.settle(resumed=False)
        return self

    async def resumed(self) -> Bench:
        """The next learner's, from a checkpoint of before the first admission."""
        again = Bench(server=self.server)
        again.intake.restore(Intake.state(Bench().intake))
        await again.queue.start_epoch(at_least=0)
        again.at_step(0)
        await again.intake.settle(resumed=True)
        return again

    async def forge(self, group_id: str, number: int, group: rollout.RolloutGroup) -> None:
        """An entry on the learner's stage that nobody admitted."""
        entry = NewEntry(group_id=group_id, admission_number=number, payload=group.SerializeToString())
        await self.queue.admit("learner", [entry])

    def at_step(self, step: int) -> None:
        self.intake.published(Version(1, step, DIGESTS[step]), step)

    async def look(self) -> list[Arrived] | None:
        """One round: admit, take what is there, a batch if it is whole."""
        rounds = iter([False, True])
        return await self.intake.batch(lambda: next(rounds))

    async def work(self, made_at: int = 0, *, only: set[int] | None = None, failure: str = "") -> None:
        """Finish what stands on the stage under the weights of a step; all, or only some admission numbers."""
        entries = await self.worker.take("policy", limit=99, block_seconds=0)
        for entry in entries:
            if only is None or entry.admission_number in only:
                await self._advance(entry, finished(entry, made_at, failure))
            else:
                await self.worker.hand_back([(entry, entry.payload)])

    async def _advance(self, entry: Entry, payload: bytes) -> None:
        await self.worker.advance([Advance(entry=entry, destination="learner", payload=payload)])

    def numbers(self, batch: list[Arrived] | None) -> list[int] | None:
        return None if batch is None else [one.entry.admission_number for one in batch]

    def counts(self) -> dict[str, int]:
        return self.intake.ledger.counts()


def finished(entry: Entry, made_at: int, failure: str = "") -> bytes:
    """The entry's group with one completion of three tokens, or failed."""
    group = rollout.RolloutGroup.FromString(entry.payload)
    if failure:
        group.failure.CopyFrom(common.ErrorInfo(code="INTERNAL", message=failure, origin="reward"))
        return group.SerializeToString()
    one = group.completions.add(finish_reason=common.FINISH_REASON_STOP)
    set_array(one.token_ids, np.array([3, 4, 5], np.int32))
    for field in (one.sampled_logprobs, one.reference_logprobs):
        set_array(field, np.zeros(3, np.float32))
    version = Version(1, made_at, DIGESTS[made_at])
    one.versions.add(version=version_message(version), start=0)
    one.scores.add(stage="reward", score=common.Score(value=1.0))
    return group.SerializeToString()


async def test_a_batch_is_what_was_admitted_for_the_step() -> None:
    """All of it, lowest numbers first; nothing more is admitted before it is trained on."""
    bench = await Bench().begin()
    assert await bench.look() is None
    await bench.work(only={1})
    assert await bench.look() is None
    await bench.work()
    batch = await bench.look()
    assert bench.numbers(batch) == [0, 1]
    bench.intake.trained(batch or [])
    assert bench.counts() == {"admitted": 2, "trained": 2, "stale": 0, "failed": 0, "in_flight": 0}
    await bench.intake.acknowledge()
    assert (await MemoryTools(bench.server).view()).group_ids == frozenset()


async def test_what_waits_for_a_checkpoint_is_counted_and_not_kept() -> None:
    """The bytes that stand on the server until then are known; the payloads themselves are not held here."""
    bench = await Bench().begin()
    assert await bench.look() is None
    await bench.work()
    batch = await bench.look()
    waiting = sum(len(one.entry.payload) for one in batch or [])
    bench.intake.trained(batch or [])
    assert bench.intake.unacknowledged_bytes == waiting > 0
    assert [one.payload for one in bench.intake.unacknowledged] == [b"", b""]
    await bench.intake.acknowledge()
    assert bench.intake.unacknowledged_bytes == 0
    assert (await MemoryTools(bench.server).view()).group_ids == frozenset()


async def test_an_older_group_is_waited_for_only_where_it_would_be_too_stale() -> None:
    """With a staleness of 1 the batch may go without the slow one at first, and waits for it a step later."""
    bench = await Bench(max_staleness=1).begin()
    assert await bench.look() is None
    await bench.work(only={1, 2, 3})
    batch = await bench.look()
    assert bench.numbers(batch) == [1, 2]
    bench.intake.trained(batch or [])
    bench.at_step(1)
    assert await bench.look() is None
    await bench.work(only={4, 5})
    assert await bench.look() is None
    await bench.work(made_at=1, only={0})
    assert bench.numbers(await bench.look()) == [0, 3]


async def test_what_became_too_old_while_it_waited_here_is_not_trained_on() -> None:
    """It is counted as stale and its prompt admitted again, under another number."""
    bench = await Bench(max_staleness=1).begin()
    assert await bench.look() is None
    await bench.work()
    batch = await bench.look()
    assert bench.numbers(batch) == [0, 1]
    bench.intake.trained(batch or [])
    bench.at_step(2)
    assert await bench.look() is None
    assert bench.counts()["stale"] == 2
    again = [one for one in bench.intake.ledger.in_flight.values() if one.tries == 1]
    assert len(again) == 2
    assert all(one.number > 3 for one in again)


async def test_a_group_that_comes_twice_is_used_once_and_acknowledged_twice() -> None:
    """A queue server that lost its last second may bring an entry again."""
    bench = await Bench().begin()
    assert await bench.look() is None
    (entry, _) = await bench.worker.take("policy", limit=9, block_seconds=0)
    payload = finished(entry, 0)
    await bench._advance(entry, payload)
    twin = NewEntry(group_id=entry.group_id, admission_number=entry.admission_number, payload=payload)
    await bench.queue.admit("learner", [twin])
    assert await bench.look() is None
    assert len(bench.intake.unacknowledged) == 1
    assert bench.counts()["in_flight"] == 2


async def test_a_queue_that_goes_away_within_a_take_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries behind the one that met the error are looked at in the next round."""
    bench = await Bench().begin()
    assert await bench.look() is None
    await bench.work(only={0}, failure="broken")
    await bench.work(only={1})
    admit = bench.queue.admit
    gone = [True]

    async def sometimes(stage: str, entries: Any) -> None:
        if gone:
            gone.clear()
            raise Unavailable("away")
        await admit(stage, entries)

    monkeypatch.setattr(bench.queue, "admit", sometimes)
    assert await bench.look() is None
    assert not gone
    assert await bench.look() is None
    await bench.work()
    batch = await bench.look()
    # The replacement that could not be sent was noted, found missing, and sent as it was.
    assert bench.numbers(batch) == [1, 2]
    bench.intake.trained(batch or [])
    assert bench.counts() == {"admitted": 3, "trained": 2, "stale": 0, "failed": 1, "in_flight": 0}


@pytest.mark.parametrize("answer_lost", [False, True])
async def test_what_a_queue_never_got_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, answer_lost: bool
) -> None:
    """Its prompts cost no try and are given up by no limit; what the queue has all the same is not sent twice."""
    bench = await Bench(readmission_limit=0).begin()
    admit, gone = bench.queue.admit, [True]

    async def sometimes(stage: str, entries: Any) -> None:
        if answer_lost or not gone:
            await admit(stage, entries)
        if gone:
            gone.clear()
            raise Unavailable("away")

    monkeypatch.setattr(bench.queue, "admit", sometimes)
    assert await bench.look() is None
    assert bench.counts() == {"admitted": 2, "trained": 0, "stale": 0, "failed": 0, "in_flight": 2}
    assert [one.tries for one in bench.intake.ledger.in_flight.values()] == [0, 0]
    [policy] = [view for view in (await MemoryTools(bench.server).view()).stages if view.stage == "policy"]
    assert policy.length == 2
    await bench.work()
    assert bench.numbers(await bench.look()) == [0, 1]


async def test_a_run_in_which_everything_fails_ends_and_says_why() -> None:
    """After as many failures in a row as a batch has tries; a warning comes with the first."""
    bench = await Bench(readmission_limit=1).begin()
    assert await bench.look() is None
    await bench.work(failure="no such token")
    assert await bench.look() is None
    assert bench.intake.warnings == ["a group failed: reward: no such token"]
    await bench.work(failure="no such token")
    with pytest.raises(ServiceError, match=r"^4 groups failed in a row, the last at reward: no such token$"):
        await bench.look()


async def test_a_rollout_of_other_weights_than_it_says_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one group less, but a line that says what is wrong: somebody serves what was never published."""
    bench = await Bench().begin()
    await bench.look()
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[__name__], "DIGESTS", ["other", "second", "third"])
        await bench.work()
    with pytest.raises(Corrupted, match="names weights other as epoch 1, step 0; published were first"):
        await bench.look()


async def test_what_cannot_be_digested_is_buried_and_replaced() -> None:
    """A score that is missing is no 0: a person finds the group among the dead letters."""
    bench = await Bench().begin()
    assert await bench.look() is None
    (entry, _) = await bench.worker.take("policy", limit=9, block_seconds=0)
    group = rollout.RolloutGroup.FromString(finished(entry, 0))
    del group.completions[0].scores[:]
    await bench._advance(entry, group.SerializeToString())
    assert await bench.look() is None
    (letter,) = await MemoryTools(bench.server).dead_letters(limit=9)
    assert letter.reason == "completions[0]: stage reward gave no score"
    assert bench.counts() == {"admitted": 3, "trained": 0, "stale": 0, "failed": 1, "in_flight": 2}


async def _requeued(bench: Bench) -> None:
    tools = MemoryTools(bench.server)
    (letter,) = await tools.dead_letters(limit=9)
    assert await tools.requeue(letter.letter_id)


async def test_a_letter_whose_prompt_was_admitted_again_comes_back() -> None:
    """The run has gone on without it: it is no more trained on than thrown away, and says why."""
    bench = await Bench().begin()
    bench.intake._vocabulary_size = 4
    assert await bench.look() is None
    await bench.work(only={0})
    assert await bench.look() is None
    (again,) = [one for one in bench.intake.ledger.in_flight.values() if one.replaces]
    counts = bench.counts()
    await _requeued(bench)
    assert await bench.look() is None
    (letter,) = await MemoryTools(bench.server).dead_letters(limit=9)
    assert (letter.group_id, letter.reason) == (
        again.replaces,
        f"its prompt was admitted again as {again.group_id}",
    )
    assert bench.counts() == counts
    assert bench.intake.unacknowledged == []


async def test_a_letter_that_was_given_up_is_trained_on_once_it_can_be() -> None:
    """Put back by a person, it is in flight again and no longer failed; one that is no better is buried again."""
    bench = await Bench(readmission_limit=0).begin()
    bench.intake._vocabulary_size = 4
    assert await bench.look() is None
    await bench.work(only={0})
    assert await bench.look() is None
    assert bench.counts() == {"admitted": 2, "trained": 0, "stale": 0, "failed": 1, "in_flight": 1}
    bench.intake._vocabulary_size = 0
    await _requeued(bench)
    assert await bench.look() is None
    assert bench.counts() == {"admitted": 3, "trained": 0, "stale": 0, "failed": 0, "in_flight": 3}
    await bench.work()
    batch = await bench.look()
    assert bench.numbers(batch) == [0, 1]
    bench.intake.trained(batch or [])
    assert bench.counts() == {"admitted": 3, "trained": 2, "stale": 0, "failed": 0, "in_flight": 1}


async def test_a_prompt_file_that_became_shorter_is_no_surprise_later() -> None:
    """A checkpoint that still needs a prompt which is not there any more is refused at the start."""
    bench = await Bench().begin()
    assert await bench.look() is None
    state = bench.intake.state()
    short = Intake(bench.spec, run_uid="run", prompts=PROMPTS[:1], queue=bench.queue, watch_seconds=1000)
    with pytest.raises(Mismatch, match=r"^p\.jsonl: the run still needs prompt \d, the file has 1: "):
        short.restore(state)


@pytest.mark.parametrize(
    ("group_id", "said", "number", "reason"),
    [
        (
            "0-00000090-3",
            "0-00000091-3",
            90,
            "the payload is of group '0-00000091-3', number 90, the entry of",
        ),
        ("0-00000090-3", "0-00000090-3", 91, "number 91, the entry of '0-00000090-3', number 91"),
        ("0-00000090-7", "0-00000090-7", 90, "the run still needs prompt 8, the file has 7"),
        ("0-4294967296-3", "0-4294967296-3", 2**32, "no learner before epoch 1 admitted"),
        ("1-00000005-3", "1-00000005-3", 5, "no learner before epoch 1 admitted"),
        ("7-00000090-3", "7-00000090-3", 90, "no learner before epoch 1 admitted"),
        ("stranger", "stranger", 90, "no id that a learner gave"),
    ],
)
async def test_a_group_that_no_learner_admitted_is_buried(
    group_id: str, said: str, number: int, reason: str
) -> None:
    """What its name, its entry and its payload say must be the same, and be possible."""
    bench = await Bench().begin()
    assert await bench.look() is None
    await bench.forge(group_id, number, rollout.RolloutGroup(group_id=said, admission_number=number))
    assert await bench.look() is None
    (letter,) = await MemoryTools(bench.server).dead_letters(limit=9)
    assert reason in letter.reason
    assert bench.counts() == {"admitted": 2, "trained": 0, "stale": 0, "failed": 0, "in_flight": 2}


async def test_one_groups_payload_under_anothers_name_is_buried_and_replaced() -> None:
    """A stage that answers two groups with one: neither is trained twice."""
    bench = await Bench().begin()
    assert await bench.look() is None
    first, second = await bench.worker.take("policy", limit=9, block_seconds=0)
    for entry in (first, second):
        await bench._advance(entry, finished(first, 0))
    assert await bench.look() is None
    (letter,) = await MemoryTools(bench.server).dead_letters(limit=9)
    assert letter.group_id == second.group_id
    assert bench.counts() == {"admitted": 3, "trained": 0, "stale": 0, "failed": 1, "in_flight": 2}


@pytest.mark.parametrize("stranger", ["stranger", "", "0-4294967296-3", "9-00000090-3"])
async def test_a_stranger_on_a_stage_does_not_keep_a_learner_from_starting(stranger: str) -> None:
    """Whoever takes the entry buries it; until then the run goes on beside it."""
    bench = await Bench().begin()
    await bench.forge(stranger, 3, rollout.RolloutGroup())
    again = await bench.resumed()
    assert again.counts() == {"admitted": 0, "trained": 0, "stale": 0, "failed": 0, "in_flight": 0}
    assert await again.look() is None
    (letter,) = await MemoryTools(bench.server).dead_letters(limit=9)
    assert letter.group_id == stranger


async def test_a_resume_keeps_the_data_order_across_readmissions() -> None:
    """After the checkpoint one of two failed and was admitted again: no prompt is left out, none stands there twice."""
    bench = await Bench().begin()
    assert await bench.look() is None
    await bench.work(only={0}, failure="no")
    assert await bench.look() is None
    prompts = {
        number: one.prompt_index for number, one in enumerate(bench.intake.ledger.in_flight.values(), 1)
    }
    again = await bench.resumed()
    assert again.counts() == {"admitted": 3, "trained": 0, "stale": 0, "failed": 0, "in_flight": 3}
    # The failed one comes once more; what stands in its place already is in flight.
    assert await again.look() is None
    assert again.counts() == {"admitted": 3, "trained": 0, "stale": 0, "failed": 1, "in_flight": 2}
    assert {one.number: one.prompt_index for one in again.intake.ledger.in_flight.values()} == prompts
    assert again.intake.state()["position"] == BATCH
    assert [one.tries for one in again.intake.ledger.in_flight.values()] == [0, 1]


@pytest.mark.parametrize("limit", [3, 0], ids=["admitted again", "given up"])
async def test_a_resume_keeps_the_data_order_where_a_group_was_buried(limit: int) -> None:
    """Its number is missing, so one prompt more than what is left was admitted: none comes twice, none is left out."""
    bench = await Bench(readmission_limit=limit).begin()
    assert await bench.look() is None
    first, second = (one.prompt_index for one in bench.intake.ledger.in_flight.values())
    (entry,) = (
        one
        for one in await bench.worker.take("policy", limit=9, block_seconds=0)
        if one.admission_number == 0
    )
    group = rollout.RolloutGroup.FromString(finished(entry, 0))
    del group.completions[0].scores[:]
    await bench._advance(entry, group.SerializeToString())
    assert await bench.look() is None
    assert await bench.look() is None  # the place of what was given up is filled
    prompts = {one.number: one.prompt_index for one in bench.intake.ledger.in_flight.values()}
    again = await bench.resumed()
    left = {one.number: one.prompt_index for one in again.intake.ledger.in_flight.values()}
    assert left == (prompts if limit else prompts | {3: first})
    assert sorted(left.values()) == sorted({first, second, *left.values()})
    assert again.intake.state()["position"] == bench.intake.state()["position"]
    assert again.counts()["failed"] == 1


@pytest.mark.parametrize("restored", [False, True])
def test_as_many_versions_are_known_as_a_rollout_may_be_behind(restored: bool) -> None:
    """With a staleness of 100, what weights of 100 steps ago made is 100 behind, not of unknown weights."""
    intake = Bench(max_staleness=100).intake
    if restored:
        intake.restore(intake.state())
    for step in range(101):
        intake.published(Version(1, step, f"{step:064x}"), step)
    group = rollout.RolloutGroup()
    group.completions.add().versions.add().version.digest = f"{0:064x}"
    assert intake.staleness(group) == 100
