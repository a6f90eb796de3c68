"""What benchmarks.recovery sees of a real queue server: who holds what, what is gone, when the next entry came."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.recovery_looks import QueueLooks
from orchestrator.local.queue_server import QueueServer
from services.common.stages.base import LEARNER_STAGE, Advance, NewEntry
from services.common.stages.redis_stages import RedisStages


async def test_looks_at_owners_and_arrivals(tmp_path: Path) -> None:
    """A worker's entries are its own until they advance; arrivals count from a moment on; no server, no arrival."""
    server = QueueServer(tmp_path)
    server.start()
    learner = RedisStages(server.url, "run", consumer="learner", stages=("policy",))
    worker = RedisStages(server.url, "run", consumer="policy-2")
    looks = QueueLooks(server.url, "run")
    try:
        await learner.start_epoch(at_least=0)
        await learner.admit("policy", [NewEntry(group_id="g", admission_number=0, payload=b"p")])
        assert await looks.held("policy", "policy-2") == []
        [entry] = await worker.take("policy", limit=1, block_seconds=0)
        held = await looks.held("policy", "policy-2")
        assert held == [entry.entry_id]
        assert await looks.owners("policy", held) == {entry.entry_id: "policy-2"}
        began = time.time() - 0.5
        assert await looks.first_since([LEARNER_STAGE], began) is None
        await worker.advance([Advance(entry=entry, destination=LEARNER_STAGE, payload=b"done")])
        assert await looks.owners("policy", held) == {}
        came = await looks.first_since([LEARNER_STAGE], began)
        assert came is not None
        assert began < came <= time.time()
        assert await looks.first_since([LEARNER_STAGE], came) is None
        server.kill()
        assert await looks.first_since([LEARNER_STAGE], began) is None
    finally:
        for one in (learner, worker, looks):
            await one.close()
        server.stop()
