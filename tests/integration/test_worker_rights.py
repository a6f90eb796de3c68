"""A stage worker whose user lacks a right: it waits and says so once, and no group pays for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from orchestrator.local.queue_server import QueueServer
from services.common.stages.base import LEARNER_STAGE, NewEntry
from services.common.stages.redis_stages import RedisStages
from services.common.stages.rights import grants
from services.common.worker import Outcome, StageWorker
from tests.contract.queue_users import Users
from tests.integration.test_supervisor import until
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

SLIP = ("policy",)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Any]:
    server = QueueServer(tmp_path / "redis")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.port = server.port
        yield client
    server.stop()


class Counting:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
        self.seen += [group.group_id for group in groups]
        return [Outcome("done") for _ in groups]


async def test_a_right_that_is_missing_for_longer_than_a_lease_costs_nothing(admin: Any) -> None:
    """What is done and cannot be moved stays its worker's: another one does not do it again."""
    users = Users(admin, admin.port, grants("run", SLIP), "run")
    whole = grants("run", SLIP)["policy"]
    poorer = [
        replace(grant, commands=tuple(one for one in grant.commands if one != "xadd")) for grant in whole
    ]
    learner = RedisStages(users.url(LEARNER_STAGE), "run", consumer="learner", stages=SLIP)
    await learner.start_epoch(at_least=0)
    payload = RolloutGroup(group_id="g", slip=["policy", "learner"]).SerializeToString()
    users.grant("policy", poorer)
    queues = [
        RedisStages(users.url("policy"), "run", consumer=f"policy-{at}", lease_seconds=0.4) for at in range(2)
    ]
    processor = Counting()
    with ThreadPoolExecutor(2) as executor:
        workers = [
            StageWorker(
                queue, "policy", processor, executor, batch_groups=4, renew_seconds=0.05, block_seconds=0.1
            )
            for queue in queues
        ]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        await learner.admit("policy", [NewEntry(group_id="g", admission_number=0, payload=payload)])
        await until(lambda: processor.seen == ["g"])
        await asyncio.sleep(1.5)
        users.grant("policy", whole)
        [entry] = await learner.take(LEARNER_STAGE, limit=4, block_seconds=10)
        for worker in workers:
            await worker.drain()
        await asyncio.gather(*running)
    assert (entry.group_id, processor.seen) == ("g", ["g"])
    for queue in [*queues, learner]:
        await queue.close()


@pytest.mark.parametrize("missing", ["xadd", "xack", "xreadgroup", "evalsha"])
async def test_a_missing_right_costs_no_group_anything(admin: Any, missing: str) -> None:
    """It waits with one line of log; once granted, every group arrives, processed once, without an attempt."""
    users = Users(admin, admin.port, grants("run", SLIP), "run")
    whole = grants("run", SLIP)["policy"]
    poorer = [
        replace(grant, commands=tuple(one for one in grant.commands if one != missing)) for grant in whole
    ]
    learner = RedisStages(users.url(LEARNER_STAGE), "run", consumer="learner", stages=SLIP)
    await learner.start_epoch(at_least=0)
    payload = RolloutGroup(group_id="g", slip=["policy", "learner"]).SerializeToString()
    await learner.admit("policy", [NewEntry(group_id="g", admission_number=0, payload=payload)])
    users.grant("policy", poorer)
    queue, processor = RedisStages(users.url("policy"), "run", consumer="policy-0"), Counting()
    with ThreadPoolExecutor(1) as executor, capture_logs() as logs:
        worker = StageWorker(queue, "policy", processor, executor, batch_groups=4, block_seconds=0.1)
        running = asyncio.create_task(worker.run())
        await until(lambda: any(line["event"].startswith("queue refuses") for line in logs))
        await asyncio.sleep(0.3)  # it tries again meanwhile
        assert (await learner.scan()).group_ids == {"g"}
        users.grant("policy", whole)
        [entry] = await learner.take(LEARNER_STAGE, limit=4, block_seconds=10)
        await worker.drain()
        await running
    assert (entry.group_id, entry.attempts, processor.seen) == ("g", 0, ["g"])
    [told] = [line for line in logs if line["event"].startswith("queue refuses")]
    assert "\n" not in told["error"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []
    await queue.close()
    await learner.close()
