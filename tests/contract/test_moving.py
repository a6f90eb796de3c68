"""Taking and moving entries: the same contract for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.common.errors import Corrupted, InvalidInput
from services.common.stages.base import LEARNER_STAGE
from tests.contract.harness import Harness
from tests.contract.queue_steps import FIRST, SECOND, fields, groups_at, ids, learner_with, new, onward, take


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
