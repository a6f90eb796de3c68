"""PolicyService: prompts as ids, text and messages, sampling options, versions; a tiny model generates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from services.common.arrays import from_numpy, to_numpy
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from tests.fakes.tiny_models import make_tiny_causal
from tests.fuzz import rpc
from tests.fuzz.surface import Surface
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as wire
from trimtab.rollout.v1 import rollout_pb2 as rollout

_VOCABULARY = 263
_SAMPLING = common.SamplingOptions(temperature=0.7, top_p=0.9, max_new_tokens=3, seed=1, num_completions=2)
_IDS = from_numpy(np.array([10, 20, 30], np.int32))
_SERVICE = "trimtab.policy.v1.PolicyService"
_PROMPTS = (
    rollout.Prompt(prompt_id="a", token_ids=_IDS),
    rollout.Prompt(prompt_id="b", text="How are you?", columns={"reference": "fine"}),
    rollout.Prompt(
        messages=[common.ChatMessage(role="user", content="Hi"), common.ChatMessage(role="x", content="y")]
    ),
)


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """One replica without a learner, small limits, so that hostile calls are many."""
    model = make_tiny_causal(folder / "model")
    config = PolicyConfig.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32", "threads": 1, "device": "cpu"},
            "max_completions": 32,
            "max_new_tokens": 16,
        }
    )
    with (
        rpc.served(config, lambda: PolicyApplication(config)) as endpoints,
        rpc.surface(endpoints.grpc, _methods()) as surface,
    ):
        yield surface


def _methods() -> list[rpc.Method]:
    return [
        rpc.Method(f"{_SERVICE}/GetPolicyInfo", [wire.GetPolicyInfoRequest()], wire.GetPolicyInfoResponse),
        rpc.Method(
            f"{_SERVICE}/Generate",
            [
                wire.GenerateRequest(prompts=[_PROMPTS[0]], sampling=_SAMPLING),
                wire.GenerateRequest(prompts=_PROMPTS, sampling=common.SamplingOptions(max_new_tokens=2)),
                wire.GenerateRequest(
                    prompts=[_PROMPTS[1]],
                    sampling=common.SamplingOptions(
                        temperature=1, top_k=5, max_new_tokens=4, min_new_tokens=2, stop=["a", "zz"]
                    ),
                ),
            ],
            wire.GenerateResponse,
            check=_check,
        ),
        rpc.Method(
            f"{_SERVICE}/GenerateStream",
            [wire.GenerateStreamRequest(prompt=prompt, sampling=_SAMPLING) for prompt in _PROMPTS],
            wire.GenerateStreamResponse,
            streaming=True,
        ),
    ]


def _check(sent: bytes, answers: list[Any]) -> None:
    """As many completions as were asked for, of ids that exist, with log-probs that are some."""
    request, [answer] = wire.GenerateRequest.FromString(sent), answers
    count = request.sampling.num_completions or 1
    assert len(answer.results) == len(request.prompts), "results for other prompts"
    for result in answer.results:
        assert len(result.completions) == count, "another number of completions"
        for completion in result.completions:
            ids, logprobs = to_numpy(completion.token_ids), to_numpy(completion.raw_logprobs)
            assert ((ids >= 0) & (ids < _VOCABULARY)).all(), "ids of no vocabulary"
            assert len(logprobs) == len(ids), "log-probs of other tokens"
            assert all(math.isfinite(value) and value <= 1e-6 for value in logprobs), (
                "a log-prob that is none"
            )
