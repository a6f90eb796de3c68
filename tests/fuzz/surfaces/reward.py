"""RewardService and RewardAdminService: rows to score, models to load, swap and take away at run time.

The statuses of a row are Score's own fuzzer's matter (reward_score); here fields of any message are damaged, those of
administration among them. What an input loads is taken away again, so that the table stays as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from services.common.arrays import from_numpy
from services.reward.application import RewardApplication
from services.reward.config import RewardConfig
from tests.fakes.tiny_models import make_tiny_reward_model
from tests.fuzz import rpc
from tests.fuzz.surface import Surface
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc

_SCORING, _ADMIN = "trimtab.reward.v1.RewardService", "trimtab.reward.v1.RewardAdminService"
_RULES = {"mood": "sentiment", "words": "regex:pattern=[a-z]+", "length": "length:target=40"}
_DEFINITION = json.dumps(
    {"composite": {"components": [{"model": "mood", "weight": 0.5}, {"model": "length"}]}}
)


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """A tiny model and three rules."""
    model = make_tiny_reward_model(folder / "tiny", pooling="last", seed=1)
    config = RewardConfig.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "device": "cpu",
            "models": [
                {"name": "tiny", "path": str(model)},
                *({"name": name, "rule": rule} for name, rule in _RULES.items()),
            ],
        }
    )
    with rpc.served(config, lambda: RewardApplication(config)) as endpoints:
        table = _Table(endpoints.grpc)
        with rpc.surface(endpoints.grpc, _methods(table)) as surface:
            yield surface
        table.close()


class _Table:
    """The models that are there, put back as they were."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._admin = reward_pb2_grpc.RewardAdminServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def loaded(self, _sent: bytes, answers: list[Any]) -> None:
        """Take away what was loaded."""
        self._admin.UnloadModel(
            wire.UnloadModelRequest(name=answers[0].model.name), timeout=rpc.TIMEOUT_SECONDS
        )

    def swapped(self, sent: bytes, _answers: list[Any]) -> None:
        """Put the rule back."""
        name = wire.SwapModelRequest.FromString(sent).name
        back = wire.SwapModelRequest(name=name, path=f"rule:{_RULES[name]}")
        self._admin.SwapModel(back, timeout=rpc.TIMEOUT_SECONDS)

    def unloaded(self, sent: bytes, _answers: list[Any]) -> None:
        """Bring it again."""
        name = wire.UnloadModelRequest.FromString(sent).name
        back = wire.LoadModelRequest(name=name, path=f"rule:{_RULES[name]}")
        self._admin.LoadModel(back, timeout=rpc.TIMEOUT_SECONDS)


def _methods(table: _Table) -> list[rpc.Method]:
    ids = from_numpy(np.array([40, 50], np.int32))
    rows = [
        wire.ScoreInput(prompt="How are you?", completion="Wonderful!", columns={"reference": "fine"}),
        wire.ScoreInput(
            messages=[
                common.ChatMessage(role="user", content="Hi"),
                common.ChatMessage(role="assistant", content="Yo"),
            ]
        ),
    ]
    tokens = wire.ScoreInput(prompt_ids=ids, completion_ids=ids)
    return [
        rpc.Method(f"{_SCORING}/ListModels", [wire.ListModelsRequest()], wire.ListModelsResponse),
        rpc.Method(
            f"{_SCORING}/Score",
            [
                wire.ScoreRequest(model="tiny", inputs=[*rows, tokens]),
                wire.ScoreRequest(model="mood", inputs=rows),
                wire.ScoreRequest(model="words", inputs=rows[:1]),
            ],
            wire.ScoreResponse,
            check=_check,
        ),
        rpc.Method(
            f"{_ADMIN}/LoadModel",
            [
                wire.LoadModelRequest(name="extra", path="rule:length:target=4"),
                wire.LoadModelRequest(name="extra", definition=_DEFINITION),
            ],
            wire.LoadModelResponse,
            check=table.loaded,
        ),
        rpc.Method(
            f"{_ADMIN}/SwapModel",
            [wire.SwapModelRequest(name="length", path="rule:sentiment")],
            wire.SwapModelResponse,
            check=table.swapped,
        ),
        rpc.Method(
            f"{_ADMIN}/SetShadow",
            [wire.SetShadowRequest(name="words", shadow="mood"), wire.SetShadowRequest(name="words")],
            wire.SetShadowResponse,
        ),
        rpc.Method(
            f"{_ADMIN}/UnloadModel",
            [wire.UnloadModelRequest(name="length")],
            wire.UnloadModelResponse,
            check=table.unloaded,
        ),
    ]


def _check(sent: bytes, answers: list[Any]) -> None:
    request, [answer] = wire.ScoreRequest.FromString(sent), answers
    assert len(answer.scores) == len(request.inputs), "scores of other rows"
    for score in answer.scores:
        assert score.HasField("value") != score.HasField("error"), "neither a value nor an error, or both"
        assert not score.HasField("value") or math.isfinite(score.value), "a score that is not finite"
        assert score.error.code in ("", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "DATA_LOSS"), (
            score.error.code
        )
