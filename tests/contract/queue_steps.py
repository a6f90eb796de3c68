"""Steps that the contract tests of the stage queue share."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.stages.base import Advance, Entry, NewEntry
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


def fields(
    number: int, *, payload: bytes = b"p", check: str | None = None, attempts: int = 0
) -> dict[bytes, bytes]:
    return {
        b"group_id": f"g{number}".encode(),
        b"admission": str(number).encode(),
        b"attempts": str(attempts).encode(),
        b"checksum": (check or checksum(payload, f"g{number}", number)).encode(),
        b"traceparent": b"",
        b"payload": payload,
    }
