"""Clients of PolicyService.

with PolicyClient("127.0.0.1:50051") as client:
    [result] = client.generate(["Once upon a time"], max_new_tokens=32)
    print(result.completions[0].text)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from trimtab.clients.base import AsyncClient, SyncClient
from trimtab.clients.inputs import PromptLike, prompt_message
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as wire
from trimtab.policy.v1 import policy_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.policy.v1.policy_pb2_grpc import PolicyServiceAsyncStub


def sampling_options(
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int = 0,
    num_completions: int = 1,
) -> common.SamplingOptions:
    """How completions are drawn; a temperature of 0 is greedy decoding."""
    return common.SamplingOptions(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop=stop,
        seed=seed,
        num_completions=num_completions,
    )


def generate_request(
    prompts: Sequence[PromptLike],
    sampling: common.SamplingOptions,
    tokenizer_fingerprint: str,
    required_version: common.WeightsVersion | None,
) -> wire.GenerateRequest:
    """The request for a batch of prompts."""
    return wire.GenerateRequest(
        prompts=[prompt_message(prompt) for prompt in prompts],
        sampling=sampling,
        tokenizer_fingerprint=tokenizer_fingerprint,
        required_version=required_version,
    )


class PolicyClient(SyncClient):
    """Completions from the current policy. Blocking."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **{"timeout_seconds": 600.0, **options})
        self._stub = wire_grpc.PolicyServiceStub(self._channel)

    def info(self, *, timeout_seconds: float | None = None) -> wire.GetPolicyInfoResponse:
        """Who the model is and what its engine can do."""
        return self._call(self._stub.GetPolicyInfo, wire.GetPolicyInfoRequest(), timeout_seconds)

    def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        tokenizer_fingerprint: str = "",
        required_version: common.WeightsVersion | None = None,
        timeout_seconds: float | None = None,
        **sampling: Any,
    ) -> list[wire.GeneratedCompletions]:
        """Completions for each prompt, in order. `sampling`: see sampling_options."""
        request = generate_request(
            prompts, sampling_options(**sampling), tokenizer_fingerprint, required_version
        )
        return list(self._call(self._stub.Generate, request, timeout_seconds).results)

    def stream(
        self, prompt: PromptLike, *, timeout_seconds: float | None = None, **sampling: Any
    ) -> Iterator[wire.GenerateStreamResponse]:
        """The completions of one prompt, token by token."""
        request = wire.GenerateStreamRequest(
            prompt=prompt_message(prompt), sampling=sampling_options(**sampling)
        )
        return self._stream(self._stub.GenerateStream, request, timeout_seconds)


class AsyncPolicyClient(AsyncClient):
    """Completions from the current policy. For asyncio."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **{"timeout_seconds": 600.0, **options})
        self._stub = cast("PolicyServiceAsyncStub", wire_grpc.PolicyServiceStub(self._channel))

    async def info(self, *, timeout_seconds: float | None = None) -> wire.GetPolicyInfoResponse:
        """Who the model is and what its engine can do."""
        return await self._call(self._stub.GetPolicyInfo, wire.GetPolicyInfoRequest(), timeout_seconds)

    async def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        tokenizer_fingerprint: str = "",
        required_version: common.WeightsVersion | None = None,
        timeout_seconds: float | None = None,
        **sampling: Any,
    ) -> list[wire.GeneratedCompletions]:
        """Completions for each prompt, in order. `sampling`: see sampling_options."""
        request = generate_request(
            prompts, sampling_options(**sampling), tokenizer_fingerprint, required_version
        )
        return list((await self._call(self._stub.Generate, request, timeout_seconds)).results)

    def stream(
        self, prompt: PromptLike, *, timeout_seconds: float | None = None, **sampling: Any
    ) -> AsyncIterator[wire.GenerateStreamResponse]:
        """The completions of one prompt, token by token."""
        request = wire.GenerateStreamRequest(
            prompt=prompt_message(prompt), sampling=sampling_options(**sampling)
        )
        return self._stream(self._stub.GenerateStream, request, timeout_seconds)
