"""Leases, attempts and leaving: the same contract for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

from services.common.stages.base import LEARNER_STAGE, LEASE_SECONDS, Entry
from services.common.stages.consumer import Consumer
from tests.contract.harness import Harness
from tests.contract.queue_steps import (
    FIRST,
    SECOND,
    arrived,
    first_id,
    groups_at,
    ids,
    learner_with,
    new,
    onward,
    take,
)


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


async def test_claims_are_asked_for_every_fifth_of_a_lease(harness: Harness) -> None:
    """A consumer that found nothing to claim asks again only after a fifth of a lease."""
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
    harness.clock.now = now + LEASE_SECONDS / 5 - 0.01
    assert await take(other) == []
    harness.clock.now = now + LEASE_SECONDS / 5
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
