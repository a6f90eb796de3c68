"""What OpenRLHF's reward function returns: tensors, as OpenRLHF reads them."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from services.common.server import serving
from services.common.spec.service import ServiceSpec
from tests.integration.server.served import App
from trimtab.openrlhf import make_reward_func
from trimtab.reward.v1 import reward_pb2


async def test_rewards_are_tensors() -> None:
    """rewards and scores are float tensors [rows], and a composite's parts are logged under their names."""
    asked: list[reward_pb2.ScoreRequest] = []

    async def score(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        asked.append(request)
        scores: list[Any] = [
            {"value": len(row.completion), "components": {"length": len(row.completion), "mood": 0.5}}
            for row in request.inputs
        ]
        return reward_pb2.ScoreResponse(scores=scores)

    async with serving(ServiceSpec(), App(score)) as endpoints:
        function = make_reward_func(endpoints.grpc, model="hh", end_tokens=["</s>"])
        # OpenRLHF calls it on a thread of its event loop's pool.
        answer = await asyncio.to_thread(function, ["<s>Q four</s>", "Q one"], ["Q ", "Q "], ["4", None])
    assert torch.equal(answer["rewards"], torch.tensor([4.0, 3.0]))
    assert torch.equal(answer["scores"], answer["rewards"])
    assert {name: values.tolist() for name, values in answer["extra_logs"].items()} == {
        "length": [4.0, 3.0],
        "mood": [0.5, 0.5],
    }
    assert [dict(row.columns) for row in asked[0].inputs] == [{"label": "4"}, {}]
