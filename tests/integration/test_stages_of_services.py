"""Reference and reward on a real queue server: groups go through both and arrive whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from orchestrator.local.queue_server import QueueServer
from services.common.arrays import from_numpy, to_numpy
from services.common.server import serving
from services.common.stages.base import NewEntry
from services.common.stages.redis_stages import RedisStages
from services.reference.application import ReferenceApplication
from services.reference.config import ReferenceConfig
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig
from tests.fakes.tiny_models import make_tiny_causal
from trimtab.clients.errors import FailedPreconditionError
from trimtab.clients.reward import AsyncRewardClient
from trimtab.rollout.v1 import rollout_pb2 as rollout

GROUPS = 12
RUN = "run-stages"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path_factory.mktemp("queue"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def learner(server: QueueServer) -> AsyncIterator[RedisStages]:
    stages = RedisStages(server.url, RUN, consumer="learner", stages=("reference", "reward/mood"))
    await stages.start_epoch(at_least=0)
    yield stages
    await stages.close()


def group_of(number: int) -> rollout.RolloutGroup:
    group = rollout.RolloutGroup(
        group_id=f"g{number}", admission_number=number, slip=["reference", "reward/mood", "learner"]
    )
    group.sampling.temperature = 1.0
    group.prompt.text = "p"
    group.prompt.token_ids.CopyFrom(from_numpy(np.array([1, 2, 3], np.int32)))
    for length in (2, 5):
        ids = np.arange(length, dtype=np.int32) + number
        group.completions.add(token_ids=from_numpy(ids), text="wonderful" if number % 2 else "terrible")
    return group


async def test_groups_pass_through_both_services(
    server: QueueServer, learner: RedisStages, tmp_path: Path
) -> None:
    """Admitted groups come to the learner with log-probs and scores; a model loaded late is waited for."""
    folder = make_tiny_causal(tmp_path / "tiny")
    queue = {"url": server.url, "run_uid": RUN}
    reference = ReferenceConfig.model_validate(
        {
            "name": "reference-1",
            "queue": queue,
            "model": {"path": str(folder), "dtype": "float32", "device": "cpu", "threads": 1},
        }
    )
    reward = RewardConfig.model_validate({"name": "reward-1", "queue": {**queue, "stage": "reward/mood"}})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(reference, ReferenceApplication(reference)))
        endpoints = await stack.enter_async_context(serving(reward, RewardApplication(reward)))
        client = await stack.enter_async_context(AsyncRewardClient(endpoints.grpc))
        await learner.admit(
            "reference",
            [
                NewEntry(group_id=f"g{n}", admission_number=n, payload=group_of(n).SerializeToString())
                for n in range(GROUPS)
            ],
        )
        await client.load_model("mood", "rule:sentiment")
        arrived = await asyncio.wait_for(_arrived(learner), 60)
        with pytest.raises(FailedPreconditionError, match="serves the queue"):
            await client.unload_model("mood")
    assert sorted(arrived) == sorted(f"g{n}" for n in range(GROUPS))
    for name, group in arrived.items():
        assert not group.HasField("failure"), name
        assert list(group.slip) == ["learner"]
        assert [timing.stage for timing in group.timings] == ["reference", "reward/mood"]
        for completion, length in zip(group.completions, (2, 5), strict=True):
            assert to_numpy(completion.reference_logprobs).shape == (length,)
            assert (completion.scores[0].score.value > 0) == bool(group.admission_number % 2)


async def _arrived(learner: RedisStages) -> dict[str, rollout.RolloutGroup]:
    found: dict[str, rollout.RolloutGroup] = {}
    while len(found) < GROUPS:
        entries = await learner.take("learner", limit=32, block_seconds=1.0)
        for entry in entries:
            found[entry.group_id] = rollout.RolloutGroup.FromString(entry.payload)
        await learner.acknowledge(entries)
    return found
