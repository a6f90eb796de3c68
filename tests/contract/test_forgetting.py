"""Removing all that a run left: the same for the twin in memory, Valkey 9 and Redis 7."""

from __future__ import annotations

from services.common.stages.base import LEARNER_STAGE
from tests.contract.harness import Harness, RedisHarness
from tests.contract.queue_steps import FIRST, learner_with, new, onward, take


async def test_nothing_of_a_run_stays(harness: Harness) -> None:
    """Streams of all stages, dead letters, counter and sentinel; a second time there is nothing to remove."""
    learner = await learner_with(harness, 4)
    worker = harness.connect("w")
    await worker.advance(onward(await take(worker, limit=2)))
    await worker.advance(onward(await take(worker, limit=1), LEARNER_STAGE))
    [arrived] = await take(learner, LEARNER_STAGE)
    await learner.bury(arrived, reason="a test")
    tools = harness.tools()
    assert await tools.forget() > 0
    scan = await tools.view()
    assert (scan.group_ids, scan.sentinel) == (frozenset(), False)
    assert await tools.dead_letters(limit=10) == []
    assert await tools.forget() == 0
    if isinstance(harness, RedisHarness):
        assert [key for key in harness.raw.scan_iter() if harness.run_uid.encode() in key] == []


async def test_other_runs_keep_theirs(harness: Harness) -> None:
    """The same server may serve many; a run whose name begins alike is another one."""
    if not isinstance(harness, RedisHarness):
        return  # The twin is one run.
    other = RedisHarness(harness.server, f"{harness.run_uid}-2")
    neighbour = await learner_with(other, 3)
    await learner_with(harness, 1)
    await harness.tools().forget()
    assert len((await neighbour.scan()).group_ids) == 3
    await neighbour.admit(FIRST, [new(7)])
    await other.close()
