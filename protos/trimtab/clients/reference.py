"""Clients of ReferenceService.

with ReferenceClient("127.0.0.1:50052") as client:
    client.logprobs([([1, 2, 3], [4, 5])], temperature=1.0)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from trimtab.clients.base import AsyncClient, SyncClient
from trimtab.clients.tensors import ids_tensor, values_of
from trimtab.common.v1 import common_pb2 as common
from trimtab.reference.v1 import reference_pb2 as wire
from trimtab.reference.v1 import reference_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.reference.v1.reference_pb2_grpc import ReferenceServiceAsyncStub

# (prompt ids, completion ids)
IdPair = tuple[Iterable[int], Iterable[int]]


def logprobs_request(
    sequences: Sequence[IdPair], temperature: float, tokenizer_fingerprint: str
) -> wire.ComputeLogProbsRequest:
    """The request for pairs of (prompt ids, completion ids)."""
    return wire.ComputeLogProbsRequest(
        sequences=[
            wire.TokenSequence(prompt_ids=ids_tensor(prompt), completion_ids=ids_tensor(completion))
            for prompt, completion in sequences
        ],
        temperature=temperature,
        tokenizer_fingerprint=tokenizer_fingerprint,
    )


def _floats(answer: wire.ComputeLogProbsResponse) -> list[array[float]]:
    return [cast("array[float]", values_of(result.logprobs)) for result in answer.results]


class ReferenceClient(SyncClient):
    """Log-probs under the frozen reference. Blocking."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = wire_grpc.ReferenceServiceStub(self._channel)

    def info(self, *, timeout_seconds: float | None = None) -> common.ModelInfo:
        """Who the model is."""
        request = wire.GetReferenceInfoRequest()
        return self._call(self._stub.GetReferenceInfo, request, timeout_seconds).model

    def logprobs(
        self,
        sequences: Sequence[IdPair],
        *,
        temperature: float = 1.0,
        tokenizer_fingerprint: str = "",
        timeout_seconds: float | None = None,
    ) -> list[array[float]]:
        """Natural log-probs of the completion tokens, float32 [completion length] for each sequence."""
        request = logprobs_request(sequences, temperature, tokenizer_fingerprint)
        return _floats(self._call(self._stub.ComputeLogProbs, request, timeout_seconds))


class AsyncReferenceClient(AsyncClient):
    """Log-probs under the frozen reference. For asyncio."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = cast("ReferenceServiceAsyncStub", wire_grpc.ReferenceServiceStub(self._channel))

    async def info(self, *, timeout_seconds: float | None = None) -> common.ModelInfo:
        """Who the model is."""
        request = wire.GetReferenceInfoRequest()
        return (await self._call(self._stub.GetReferenceInfo, request, timeout_seconds)).model

    async def logprobs(
        self,
        sequences: Sequence[IdPair],
        *,
        temperature: float = 1.0,
        tokenizer_fingerprint: str = "",
        timeout_seconds: float | None = None,
    ) -> list[array[float]]:
        """Natural log-probs of the completion tokens, float32 [completion length] for each sequence."""
        request = logprobs_request(sequences, temperature, tokenizer_fingerprint)
        return _floats(await self._call(self._stub.ComputeLogProbs, request, timeout_seconds))
