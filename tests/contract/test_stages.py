"""The stage queue's contract: the same tests for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from services.common.errors import Corrupted, InvalidInput, LostOwnership, Unavailable
from services.common.stages.base import LEARNER_STAGE, LEASE_SECONDS, Advance, Entry, NewEntry
from services.common.stages.consumer import Consumer
from services.common.stages.entry import checksum
from tests.contract.harness import Harness

FIRST = "policy"
SECOND = "reward/hh"


def new(number: int, payload: bytes | None = None) -> NewEntry:
    return NewEntry(
        group_id=f"g{number}",
        admission_number=number,
        payload=f"payload {number}".encode() if payload is None else payload,
        traceparent=f"00-trace-{number}",
    )


def ids(entries: Sequence[Entry]) -> list[str]:
    return [entry.group_id for entry in entries]


async def learner_with(harness: Harness, count: int) -> Consumer:
    """A learner that has admitted so many groups to FIRST."""
    learner = harness.connect("learner-0", (FIRST, SECOND))
    await learner.start_epoch(at_least=0)
    await learner.admit(FIRST, [new(number) for number in range(count)])
    return learner


async def take(queue: Consumer, stage: str = FIRST, limit: int = 32) -> list[Entry]:
    return await queue.take(stage, limit=limit, block_seconds=0)


async def arrived(harness: Harness, name: str) -> Consumer:
    """A consumer that stands connected, so that it may claim a lease from now."""
    queue = harness.connect(name)
    assert await take(queue, SECOND) == []
    return queue


def onward(entries: Sequence[Entry], destination: str = SECOND) -> list[Advance]:
    return [Advance(entry=entry, destination=destination, payload=entry.payload + b"+") for entry in entries]


def first_id(harness: Harness, stage: str) -> str:
    return next(iter(harness.entries(stage)))


async def groups_at(learner: Consumer) -> dict[str, set[str]]:
    return {view.stage: set(view.group_ids) for view in (await learner.scan()).stages}


# ---------------------------------------------------------------- taking, moving


async def test_fifo_with_identity_intact(harness: Harness) -> None:
    """Entries come in the order of admission, each with its number, payload and trace, none attempted."""
    await learner_with(harness, 5)
    worker = harness.connect("w")
    first, rest = await take(worker, limit=2), await take(worker)
    assert ids([*first, *rest]) == ["g0", "g1", "g2", "g3", "g4"]
    assert [entry.admission_number for entry in rest] == [2, 3, 4]
    assert rest[0].payload == b"payload 2"
    assert rest[0].traceparent == "00-trace-2"
    assert {entry.attempts for entry in (*first, *rest)} == {0}
    assert await take(worker) == []


async def test_two_consumers_share_a_stage_without_overlap(harness: Harness) -> None:
    """What one consumer took, another never gets while the lease lasts."""
    await learner_with(harness, 6)
    one, two = harness.connect("w1"), harness.connect("w2")
    taken = [*await take(one, limit=2), *await take(two, limit=3), *await take(one)]
    assert sorted(ids(taken)) == [f"g{number}" for number in range(6)]


async def test_groups_admitted_before_any_worker_exists_are_seen(harness: Harness) -> None:
    """A consumer group starts at the first entry, not at what comes after its creation."""
    harness.inject("late", fields(7))
    assert ids(await take(harness.connect("w"), "late")) == ["g7"]


def fields(number: int, *, payload: bytes = b"p", check: str | None = None) -> dict[bytes, bytes]:
    return {
        b"group_id": f"g{number}".encode(),
        b"admission": str(number).encode(),
        b"attempts": b"0",
        b"checksum": (check or checksum(payload, f"g{number}", number)).encode(),
        b"traceparent": b"",
        b"payload": payload,
    }


async def test_advance_moves_the_new_payload_and_deletes_here(harness: Harness) -> None:
    """An advanced group stands on the next stage alone, with the payload it was given and its trace."""
    learner = await learner_with(harness, 3)
    worker = harness.connect("w")
    assert await worker.advance(onward(await take(worker))) == [True, True, True]
    assert await groups_at(learner) == {FIRST: set(), SECOND: {"g0", "g1", "g2"}, LEARNER_STAGE: set()}
    moved = await take(worker, SECOND)
    assert [entry.payload for entry in moved] == [b"payload 0+", b"payload 1+", b"payload 2+"]
    assert moved[1].traceparent == "00-trace-1"
    assert moved[1].admission_number == 1


async def test_advance_takes_a_batch_beyond_one_script(harness: Harness) -> None:
    """More moves than one script carries all arrive, in order, also with large payloads among them."""
    learner = await learner_with(harness, 0)
    await learner.admit(
        FIRST, [new(number, b"x" * (300_000 if number % 50 == 0 else 10)) for number in range(150)]
    )
    worker = harness.connect("w")
    entries = await take(worker, limit=200)
    assert await worker.advance(onward(entries)) == [True] * 150
    assert ids(await take(worker, SECOND, limit=200)) == [f"g{number}" for number in range(150)]


async def test_one_call_may_advance_to_several_stages(harness: Harness) -> None:
    """Each move goes to its own destination."""
    learner = await learner_with(harness, 2)
    worker = harness.connect("w")
    one, two = await take(worker)
    assert await worker.advance([*onward([one], SECOND), *onward([two], LEARNER_STAGE)]) == [True, True]
    assert await groups_at(learner) == {FIRST: set(), SECOND: {"g0"}, LEARNER_STAGE: {"g1"}}


async def test_a_second_advance_of_the_same_entry_is_refused(harness: Harness) -> None:
    """Repeating an advance, as after a lost answer, doubles nothing."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    moves = onward(await take(worker))
    assert await worker.advance(moves) == [True]
    assert await worker.advance(moves) == [False]
    views = {view.stage: view.length for view in (await learner.scan()).stages}
    assert views[SECOND] == 1


async def test_wrong_typed_destination_loses_nothing(harness: Harness) -> None:
    """A destination that is no stream is an error before anything moves: all entries stay owned."""
    learner = await learner_with(harness, 3)
    worker = harness.connect("w")
    entries = await take(worker)
    harness.occupy("broken")
    with pytest.raises(Corrupted, match="not a stream"):
        await worker.advance([*onward(entries[:1]), *onward(entries[1:], "broken")])
    assert (await groups_at(learner))[FIRST] == {"g0", "g1", "g2"}
    assert await worker.advance(onward(entries)) == [True, True, True]


async def test_a_stage_without_a_name_is_refused(harness: Harness) -> None:
    """An empty stage name never becomes a key."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    [entry] = await take(worker)
    with pytest.raises(InvalidInput, match="stage"):
        await take(worker, "")
    with pytest.raises(InvalidInput, match="stage"):
        await worker.advance(onward([entry], ""))
    assert (await groups_at(learner))[FIRST] == {"g0"}


async def test_fields_of_a_newer_release_travel_on(harness: Harness) -> None:
    """A field this release does not know survives an advance and a failure."""
    harness.inject(FIRST, {**fields(1), b"colour": b"blue"})
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker)))
    [entry] = await take(worker, SECOND)
    await worker.fail(entry, payload_if_last=b"")
    [stored] = harness.entries(SECOND).values()
    assert stored[b"colour"] == b"blue"
    assert stored[b"attempts"] == b"1"


async def test_blocking_take_wakes_up(harness: Harness) -> None:
    """A take that waits returns as soon as something arrives, long before its time is over."""
    learner = await learner_with(harness, 0)
    worker = harness.connect("w")
    waiting = asyncio.create_task(worker.take(FIRST, limit=4, block_seconds=30))
    await asyncio.sleep(0)
    began = time.monotonic()
    await learner.admit(FIRST, [new(0)])
    assert ids(await waiting) == ["g0"]
    assert time.monotonic() - began < 10


async def test_blocking_take_ends_with_nothing(harness: Harness) -> None:
    """A take without anything returns an empty list after about its time."""
    began = time.monotonic()
    assert await harness.connect("w").take(FIRST, limit=4, block_seconds=0.05) == []
    assert 0.03 < time.monotonic() - began < 5


# ---------------------------------------------------------------- leases, ownership


async def taken_over(harness: Harness) -> tuple[Consumer, Entry, Consumer, Entry, Consumer]:
    """An entry whose first owner stalled and whose second owner has it now, and a learner."""
    learner = await learner_with(harness, 1)
    stalled, heir = harness.connect("stalled"), await arrived(harness, "heir")
    [entry] = await take(stalled)
    harness.silence([entry])
    [again] = await take(heir)
    return stalled, entry, heir, again, learner


async def test_a_lease_that_ended_is_taken_over(harness: Harness) -> None:
    """The entry of a silent owner goes to whoever asks, first of all, with one attempt counted."""
    learner = await learner_with(harness, 2)
    stalled, heir = harness.connect("stalled"), await arrived(harness, "heir")
    [entry] = await take(stalled, limit=1)
    harness.silence([entry])
    await learner.admit(FIRST, [new(9)])
    [again] = await take(heir)
    assert (again.group_id, again.attempts, again.deliveries) == ("g0", 1, 2)
    assert ids(await take(heir)) == ["g1", "g9"]


async def test_a_stalled_owner_can_do_nothing(harness: Harness) -> None:
    """Whose entry was claimed can neither renew, advance, hand back nor fail it; the heir can."""
    stalled, entry, heir, again, learner = await taken_over(harness)
    assert await stalled.renew([entry]) == [False]
    assert await stalled.advance(onward([entry])) == [False]
    assert await stalled.hand_back([(entry, b"partial")]) == [False]
    assert await stalled.fail(entry, payload_if_last=b"failed") is False
    assert (await groups_at(learner))[FIRST] == {"g0"}
    assert await heir.renew([again]) == [True]
    assert await heir.advance(onward([again])) == [True]


async def test_an_entry_claimed_back_is_another_delivery(harness: Harness) -> None:
    """Also where the same consumer has the entry again, what it took before proves nothing any more."""
    stalled, entry, _, again, learner = await taken_over(harness)
    harness.silence([again])
    harness.clock.advance(LEASE_SECONDS)
    [third] = await take(stalled)
    assert (third.deliveries, third.attempts) == (3, 2)
    assert await stalled.advance(onward([entry])) == [False]
    assert await stalled.advance(onward([third])) == [True]
    assert (await groups_at(learner))[SECOND] == {"g0"}


async def test_batch_moves_check_each_entry_by_itself(harness: Harness) -> None:
    """One lost entry in a batch keeps the others from nothing."""
    await learner_with(harness, 3)
    stalled, heir = harness.connect("stalled"), await arrived(harness, "heir")
    entries = await take(stalled)
    harness.silence([entries[1]])
    await stalled.renew([entries[0], entries[2]])
    assert ids(await take(heir)) == ["g1"]
    assert await stalled.renew(entries) == [True, False, True]
    assert await stalled.advance(onward(entries)) == [True, False, True]


async def test_renewing_keeps_the_lease_and_counts_nothing(harness: Harness) -> None:
    """A renewed entry is not taken over, and its delivery count stays."""
    await learner_with(harness, 1)
    owner, other = harness.connect("owner"), harness.connect("other")
    [entry] = await take(owner)
    for _ in range(3):
        harness.silence([entry])
        assert await owner.renew([entry]) == [True]
        assert await take(other) == []
    harness.silence([entry])
    [again] = await take(other)
    assert again.deliveries == 2


async def test_claims_are_asked_for_every_third_of_a_lease(harness: Harness) -> None:
    """A consumer that found nothing to claim asks again only after a third of a lease."""
    await learner_with(harness, 1)
    owner, other = harness.connect("owner"), harness.connect("other")
    harness.clock.advance(LEASE_SECONDS)
    assert ids(await take(owner)) == ["g0"]
    assert await take(other) == []
    pending = Entry(
        stage=FIRST, entry_id=first_id(harness, FIRST), group_id="g0", admission_number=0, payload=b""
    )
    now = harness.clock.now
    harness.silence([pending])
    harness.clock.now = now + LEASE_SECONDS / 3 - 0.01
    assert await take(other) == []
    harness.clock.now = now + LEASE_SECONDS / 3
    harness.silence([pending])
    assert ids(await take(other)) == ["g0"]


async def test_whoever_has_just_connected_claims_nothing_for_a_lease(harness: Harness) -> None:
    """Time in which the server was away is no silence of an owner: all renew before anybody claims."""
    await learner_with(harness, 1)
    [entry] = await take(harness.connect("owner"))
    harness.silence([entry])
    fresh = harness.connect("fresh")
    assert await take(fresh) == []
    harness.clock.advance(LEASE_SECONDS - 0.01)
    assert await take(fresh) == []
    harness.clock.advance(0.01)
    assert ids(await take(fresh)) == ["g0"]


# ---------------------------------------------------------------- attempts


async def test_an_attempted_entry_is_returned_alone(harness: Harness) -> None:
    """What failed before shares its batch with nobody, the others are neither lost nor out of order."""
    learner = await learner_with(harness, 3)
    worker = harness.connect("w")
    first = await take(worker)
    for entry in first[:2]:
        assert await worker.fail(entry, payload_if_last=b"failed")
    await worker.advance(onward(first[2:]))
    await learner.admit(FIRST, [new(3), new(4)])
    other = harness.connect("w2")
    batches = [ids(await take(other)) for _ in range(4)]
    assert batches == [["g0"], ["g1"], ["g3", "g4"], []]


async def test_clean_entries_before_an_attempted_one_come_first(harness: Harness) -> None:
    """Order is kept around an attempted entry: those before it, itself alone, those after it."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    [entry] = await take(worker)
    await learner.admit(FIRST, [new(1), new(2)])
    await worker.fail(entry, payload_if_last=b"failed")
    await learner.admit(FIRST, [new(3)])
    batches = [ids(await take(worker)) for _ in range(4)]
    assert batches == [["g1", "g2"], ["g0"], ["g3"], []]


async def test_what_waits_behind_an_attempted_entry_is_renewed_and_movable(harness: Harness) -> None:
    """Entries that wait inside a consumer keep their lease by its renewals, and are its own when returned."""
    learner = await learner_with(harness, 1)
    worker, other = harness.connect("w"), harness.connect("other")
    [entry] = await take(worker)
    await worker.fail(entry, payload_if_last=b"failed")
    await learner.admit(FIRST, [new(1)])
    [attempted] = await take(worker)
    waiting = Entry(
        stage=FIRST, entry_id=list(harness.entries(FIRST))[-1], group_id="g1", admission_number=1, payload=b""
    )
    harness.silence([attempted, waiting])
    assert await worker.renew([attempted]) == [True]
    assert await take(other) == []
    [after] = await take(worker)
    assert await worker.advance(onward([attempted, after])) == [True, True]


async def test_three_failures_lead_to_the_learner(harness: Harness) -> None:
    """Two failures leave the payload as it was; the third brings the failed payload to the learner."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    for attempt in range(3):
        [entry] = await take(worker)
        assert (entry.attempts, entry.payload) == (attempt, b"payload 0")
        assert await worker.fail(entry, payload_if_last=b"failed for good")
    assert await take(worker) == []
    [failed] = await take(learner, LEARNER_STAGE)
    assert (failed.group_id, failed.payload, failed.attempts) == ("g0", b"failed for good", 3)


async def test_redeliveries_and_failures_add_up(harness: Harness) -> None:
    """A lost worker and a failure are one attempt each, whatever their order."""
    stalled, _, heir, again, learner = await taken_over(harness)
    assert await heir.fail(again, payload_if_last=b"failed")
    [third] = await take(stalled)
    assert (third.stored_attempts, third.deliveries, third.attempts) == (2, 1, 2)
    assert await stalled.fail(third, payload_if_last=b"failed")
    assert (await groups_at(learner))[LEARNER_STAGE] == {"g0"}


async def test_handing_back_counts_no_attempt_and_keeps_the_work(harness: Harness) -> None:
    """A handed-back group comes again with its partial payload and the attempts it had."""
    _, _, heir, again, _ = await taken_over(harness)
    assert await heir.hand_back([(again, b"half done")]) == [True]
    [entry] = await take(heir)
    assert (entry.payload, entry.attempts, entry.stored_attempts) == (b"half done", 1, 1)
    assert await heir.hand_back([(entry, b"more done")]) == [True]
    [entry] = await take(heir)
    assert (entry.payload, entry.attempts) == (b"more done", 1)


async def test_the_next_stage_counts_from_zero(harness: Harness) -> None:
    """What went wrong on one stage is no attempt of the next."""
    _, _, heir, again, _ = await taken_over(harness)
    await heir.advance(onward([again]))
    [entry] = await take(heir, SECOND)
    assert entry.attempts == 0


# ---------------------------------------------------------------- leaving


async def test_leaving_deletes_only_who_holds_nothing(harness: Harness) -> None:
    """A consumer that holds entries stays, so that they can be claimed; one that holds nothing goes."""
    await learner_with(harness, 1)
    holder, idle = harness.connect("holder"), harness.connect("idle")
    [entry] = await take(holder)
    assert await take(idle) == []
    await holder.leave()
    await idle.leave()
    assert harness.consumers(FIRST) == {"holder"}
    harness.silence([entry])
    [again] = await take(idle)
    assert again.group_id == "g0"


async def test_leaving_hands_back_what_waits_inside(harness: Harness) -> None:
    """Entries a consumer had read but not returned go back without an attempt, and the consumer goes."""
    learner = await learner_with(harness, 1)
    worker = harness.connect("w")
    [entry] = await take(worker)
    await worker.fail(entry, payload_if_last=b"failed")
    await learner.admit(FIRST, [new(1)])
    [attempted] = await take(worker)
    await worker.advance(onward([attempted]))
    await worker.leave()
    assert harness.consumers(FIRST) == set()
    [again] = await take(harness.connect("other"))
    assert (again.group_id, again.attempts) == ("g1", 0)


# ---------------------------------------------------------------- damage


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


# ---------------------------------------------------------------- the learner


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


# ---------------------------------------------------------------- the scan


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
