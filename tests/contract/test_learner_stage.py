"""The learner's own stage, damage and the scan: the same contract for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import LostOwnership, Unavailable
from services.common.stages.base import LEARNER_STAGE, Entry
from tests.contract.harness import Harness
from tests.contract.queue_steps import (
    FIRST,
    SECOND,
    fields,
    first_id,
    groups_at,
    ids,
    learner_with,
    new,
    onward,
    take,
)


async def test_wrong_checksum_goes_to_the_dead_letters(harness: Harness) -> None:
    """A damaged entry is buried with its reason, those beside it are taken as ever."""
    harness.inject(FIRST, fields(1))
    harness.inject(FIRST, fields(2, check="0" * 16))
    harness.inject(FIRST, fields(3))
    assert ids(await take(harness.connect("w"))) == ["g1", "g3"]
    [letter] = await harness.tools().dead_letters(limit=5)
    assert (letter.stage, letter.group_id, letter.admission_number) == (FIRST, "g2", 2)
    assert "wrong checksum" in letter.reason
    assert letter.payload == b"p"


@pytest.mark.parametrize(
    "damage",
    [
        {b"admission": b"many"},
        {b"attempts": b""},
        {b"group_id": b"\xff\xfe"},
        {b"payload": b"another"},
        {b"group_id": b"g8"},
    ],
)
async def test_every_damage_is_buried(harness: Harness, damage: dict[bytes, bytes]) -> None:
    """Whatever field is damaged, the entry leaves the stage and nothing raises."""
    harness.inject(FIRST, fields(1) | damage)
    assert await take(harness.connect("w")) == []
    assert harness.entries(FIRST) == {}
    assert len(await harness.tools().dead_letters(limit=5)) == 1


async def test_an_entry_without_fields_is_buried(harness: Harness) -> None:
    """An entry that is nothing of ours is buried too, with the names of what it lacks."""
    harness.inject(FIRST, {b"hello": b"world"})
    assert await take(harness.connect("w")) == []
    [letter] = await harness.tools().dead_letters(limit=5)
    assert "payload" in letter.reason


async def test_the_epoch_rises_with_every_start(harness: Harness) -> None:
    """Epochs only rise: by the counter there, and by what the checkpoint says."""
    assert await harness.connect("a").start_epoch(at_least=0) == 1
    assert await harness.connect("b").start_epoch(at_least=0) == 2
    assert await harness.connect("c").start_epoch(at_least=40) == 41
    assert await harness.connect("d").start_epoch(at_least=7) == 42


async def test_an_emptied_server_continues_from_the_checkpoint(harness: Harness) -> None:
    """A server that lost its counter never gives an epoch out again."""
    learner = harness.connect("a")
    assert await learner.start_epoch(at_least=5) == 6
    harness.empty()
    assert await harness.connect("b").start_epoch(at_least=6) == 7


async def test_an_old_learner_is_fenced(harness: Harness) -> None:
    """Once another learner has begun, the first can neither write nor read anything any more."""
    old = await learner_with(harness, 2)
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker), LEARNER_STAGE))
    [held, _] = await take(old, LEARNER_STAGE)
    successor = harness.connect("learner-1")
    await successor.start_epoch(at_least=0)
    with pytest.raises(LostOwnership):
        await old.admit(FIRST, [new(7)])
    with pytest.raises(LostOwnership):
        await take(old, LEARNER_STAGE)
    with pytest.raises(LostOwnership):
        await old.acknowledge([held])
    with pytest.raises(LostOwnership):
        await old.bury(held, reason="no")
    with pytest.raises(LostOwnership):
        await old.scan()
    with pytest.raises(LostOwnership):
        await old.restore_sentinel()
    with pytest.raises(LostOwnership):
        await old.renew([held])
    assert await groups_at(successor) == {FIRST: set(), SECOND: set(), LEARNER_STAGE: {"g0", "g1"}}


async def test_learners_of_equal_epoch_are_told_apart(harness: Harness) -> None:
    """After an emptied server gave the same epoch out twice, only the one that began last may write."""
    old = harness.connect("a")
    await old.start_epoch(at_least=0)
    harness.empty()
    successor = harness.connect("b")
    assert await successor.start_epoch(at_least=0) == old.epoch
    with pytest.raises(LostOwnership):
        await old.admit(FIRST, [new(1)])
    with pytest.raises(LostOwnership):
        await old.restore_sentinel()
    await successor.admit(FIRST, [new(2)])


async def test_a_successor_inherits_what_was_not_acknowledged(harness: Harness) -> None:
    """A new learner gets at once, and first, what the old one held; its own later; nothing twice."""
    old = await learner_with(harness, 3)
    worker = harness.connect("w")
    entries = await take(worker)
    await worker.advance(onward(entries[:2], LEARNER_STAGE))
    held = await take(old, LEARNER_STAGE)
    await old.acknowledge(held[:1])
    successor = harness.connect("learner-1")
    await successor.start_epoch(at_least=0)
    await worker.advance(onward(entries[2:], LEARNER_STAGE))
    inherited = await take(successor, LEARNER_STAGE)
    assert [(entry.group_id, entry.attempts) for entry in inherited] == [("g1", 0)]
    fresh = await take(successor, LEARNER_STAGE)
    assert ids(fresh) == ["g2"]
    assert await take(successor, LEARNER_STAGE) == []
    await successor.acknowledge([*inherited, *fresh])
    assert (await successor.scan()).group_ids == frozenset()


async def test_what_a_fenced_learner_took_last_is_adopted_later(harness: Harness) -> None:
    """An entry given to the old learner while it was being replaced comes to the new one, unattempted."""
    old = await learner_with(harness, 1)
    worker = harness.connect("w")
    entries = await take(worker)
    successor = harness.connect("learner-1")
    await successor.start_epoch(at_least=0)
    await worker.advance(onward(entries, LEARNER_STAGE))
    with pytest.raises(LostOwnership):
        await take(old, LEARNER_STAGE)
    assert await take(successor, LEARNER_STAGE) == []
    entry_id = first_id(harness, LEARNER_STAGE)
    harness.silence(
        [Entry(stage=LEARNER_STAGE, entry_id=entry_id, group_id="g0", admission_number=0, payload=b"")]
    )
    [adopted] = await take(successor, LEARNER_STAGE)
    assert (adopted.group_id, adopted.attempts) == ("g0", 0)
    assert await take(successor, LEARNER_STAGE) == []


async def test_the_learner_keeps_what_it_holds_without_renewing(harness: Harness) -> None:
    """Groups waiting for their checkpoint are not delivered again, however long it takes."""
    learner = await learner_with(harness, 2)
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker), LEARNER_STAGE))
    held = await take(learner, LEARNER_STAGE)
    for _ in range(5):
        harness.silence(held)
        assert await take(learner, LEARNER_STAGE) == []
    await learner.acknowledge(held)
    assert harness.entries(LEARNER_STAGE) == {}


@pytest.mark.parametrize("inherited", [False, True])
async def test_a_damaged_entry_that_cannot_be_buried_keeps_none_back(
    harness: Harness, inherited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away just then: those that were taken with it come at the next look, all of them."""
    learner = await learner_with(harness, 0)
    for at, damage in enumerate(({}, {"check": "0" * 16}, {})):
        harness.inject(LEARNER_STAGE, fields(at, **damage))
    if inherited:
        await take(learner, LEARNER_STAGE)
        learner = harness.connect("learner-1")
        await learner.start_epoch(at_least=0)
        harness.inject(LEARNER_STAGE, fields(4, check="0" * 16))

    async def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(learner._steps, "bury", away)
        taken = []
        with pytest.raises(Unavailable):
            for _ in range(3):
                taken += await take(learner, LEARNER_STAGE)
    for _ in range(3):
        taken += await take(learner, LEARNER_STAGE)
    assert sorted(ids(taken)) == ["g0", "g2"]


async def test_bury_and_requeue(harness: Harness) -> None:
    """What the learner buries can be looked at and put back where it came from, its attempts forgotten."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    for _ in range(3):
        [entry] = await take(worker)
        await worker.fail(entry, payload_if_last=b"failed")
    [failed] = await take(learner, LEARNER_STAGE)
    await learner.bury(failed, reason="indigestible")
    assert (await learner.scan()).group_ids == frozenset()
    tools = harness.tools()
    [letter] = await tools.dead_letters(limit=10)
    assert (letter.stage, letter.reason, letter.payload) == (LEARNER_STAGE, "indigestible", b"failed")
    assert await tools.requeue(letter.letter_id) is True
    assert await tools.requeue(letter.letter_id) is False
    assert await tools.requeue("nonsense") is False
    assert await tools.dead_letters(limit=10) == []
    [again] = await take(learner, LEARNER_STAGE)
    assert (again.group_id, again.attempts, again.payload) == ("g0", 0, b"failed")
    assert (failed.requeued, again.requeued) == (False, True)


async def test_what_was_put_back_says_so_on_all_its_way(harness: Harness) -> None:
    """Whichever stage a dead letter came from, the learner sees that a person had a hand in it."""
    learner = await learner_with(harness, 0)
    harness.inject(FIRST, fields(1) | {b"requeued": b"1"})
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker), LEARNER_STAGE))
    [arrived] = await take(learner, LEARNER_STAGE)
    assert arrived.requeued


async def test_burying_what_is_not_owned_does_nothing(harness: Harness) -> None:
    """A group is buried once."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker), LEARNER_STAGE))
    [entry] = await take(learner, LEARNER_STAGE)
    await learner.bury(entry, reason="first")
    await learner.bury(entry, reason="second")
    assert len(await harness.tools().dead_letters(limit=10)) == 1


async def test_only_a_learner_may_admit(harness: Harness) -> None:
    """A consumer without an epoch cannot do what only the learner may."""
    worker = harness.connect("w")
    with pytest.raises(LostOwnership):
        await worker.admit(FIRST, [new(1)])
    with pytest.raises(LostOwnership):
        await worker.scan()


async def test_the_scan_counts_what_stands_where(harness: Harness) -> None:
    """Length, pending, living consumers and group ids of every stage; each group exactly once."""
    learner = await learner_with(harness, 5)
    worker = harness.connect("w")
    entries = await take(worker, limit=3)
    await worker.advance(onward(entries[:1]))
    scan = await learner.scan()
    views = {view.stage: view for view in scan.stages}
    assert scan.sentinel
    assert scan.group_ids == {f"g{number}" for number in range(5)}
    assert (views[FIRST].length, views[FIRST].pending, views[FIRST].consumers) == (4, 2, 1)
    assert (views[SECOND].length, views[SECOND].pending, views[SECOND].consumers) == (1, 0, 0)
    assert views[SECOND].group_ids == {"g0"}
    assert await harness.tools().view() == scan


async def test_every_group_is_somewhere_in_every_scan(harness: Harness) -> None:
    """While groups move on all sides, no scan misses one or sees one twice."""
    count = 40
    learner = await learner_with(harness, count)
    moving = asyncio.gather(
        *(run_stage(harness, f"{stage}-{at}", stage, then) for stage, then in CHAIN for at in range(2))
    )
    everything = {f"g{number}" for number in range(count)}
    arrived = 0
    while arrived < count:
        scan = await learner.scan()
        assert scan.group_ids == everything
        assert sum(view.length for view in scan.stages) == count
        arrived += len(await learner.take(LEARNER_STAGE, limit=8, block_seconds=0.01))
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)


CHAIN = [(FIRST, SECOND), (SECOND, LEARNER_STAGE)]


async def run_stage(harness: Harness, name: str, stage: str, destination: str) -> None:
    worker = harness.connect(name)
    while True:
        entries = await worker.take(stage, limit=3, block_seconds=0.01)
        await worker.advance(onward(entries, destination))
        await asyncio.sleep(0)


async def test_a_server_that_came_back_empty_is_told_apart(harness: Harness) -> None:
    """An emptied server shows in the scan, refuses admissions until restored, and works again afterwards."""
    learner = await learner_with(harness, 2)
    worker = harness.connect("w")
    [entry] = await take(worker, limit=1)
    harness.empty()
    scan = await learner.scan()
    assert (scan.sentinel, scan.group_ids) == (False, frozenset())
    with pytest.raises(Unavailable, match="empty"):
        await learner.admit(FIRST, [new(0)])
    assert await worker.advance(onward([entry])) == [False]
    await learner.restore_sentinel()
    assert (await learner.scan()).sentinel
    await learner.admit(FIRST, [new(0), new(1)])
    assert ids(await take(worker)) == ["g0", "g1"]
    assert learner.epoch == 1
