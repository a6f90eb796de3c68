"""ReferenceService: pairs of ids at a temperature; a tiny model answers with log-probs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from services.common.arrays import from_numpy, to_numpy
from services.reference.application import ReferenceApplication
from services.reference.config import ReferenceConfig
from tests.fakes.tiny_models import make_tiny_causal
from tests.fuzz import rpc
from tests.fuzz.surface import Surface
from trimtab.reference.v1 import reference_pb2 as wire

_SERVICE = "trimtab.reference.v1.ReferenceService"


def _sequence(prompt: int, completion: int) -> wire.TokenSequence:
    return wire.TokenSequence(
        prompt_ids=from_numpy(np.arange(10, 10 + prompt, dtype=np.int32)),
        completion_ids=from_numpy(np.arange(40, 40 + completion, dtype=np.int32)),
    )


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """One replica, small limits."""
    model = make_tiny_causal(folder / "model")
    config = ReferenceConfig.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32", "threads": 1, "device": "cpu"},
            "max_sequences": 64,
        }
    )
    with (
        rpc.served(config, lambda: ReferenceApplication(config)) as endpoints,
        rpc.surface(endpoints.grpc, _methods()) as surface,
    ):
        yield surface


def _methods() -> list[rpc.Method]:
    some = [_sequence(3, 4), _sequence(1, 1), _sequence(20, 30)]
    return [
        rpc.Method(
            f"{_SERVICE}/GetReferenceInfo", [wire.GetReferenceInfoRequest()], wire.GetReferenceInfoResponse
        ),
        *[
            rpc.Method(
                f"{_SERVICE}/ComputeLogProbs",
                [
                    wire.ComputeLogProbsRequest(sequences=some, temperature=1),
                    wire.ComputeLogProbsRequest(sequences=some[:1], temperature=0.7),
                ],
                wire.ComputeLogProbsResponse,
                check=_check,
            )
        ],
    ]


def _check(sent: bytes, answers: list[Any]) -> None:
    request, [answer] = wire.ComputeLogProbsRequest.FromString(sent), answers
    assert len(answer.results) == len(request.sequences), "results for other sequences"
    for sequence, result in zip(request.sequences, answer.results, strict=True):
        values = to_numpy(result.logprobs)
        assert len(values) == len(sequence.completion_ids.data) // 4, "log-probs of other tokens"
        assert np.isfinite(values).all() and (values <= 1e-5).all(), "a log-prob that is none"
