"""PolicyService on the wire: messages to requests and back, nothing else."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import numpy as np

from services.common.arrays import from_numpy
from services.common.errors import Unavailable
from services.models.manifest import Version
from services.models.wire import model_info, version_message, version_of
from services.policy.engines.base import Draft, Emit, Request
from services.policy.generation import Policy, Spans, check_limits
from services.policy.requests import (
    TextSoFar,
    completion_of,
    ids_message,
    prompt_ids,
    requests_for,
    sampling_of,
)
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as wire
from trimtab.policy.v1 import policy_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["PolicyService"].full_name


class PolicyServicer(wire_grpc.PolicyServiceServicer):
    """Answers for one Policy, which is attached once it is loaded."""

    def __init__(self, executor: Executor, *, max_completions: int, max_new_tokens: int) -> None:
        self._executor = executor
        self._max_completions = max_completions
        self._max_new_tokens = max_new_tokens
        self._policy: Policy | None = None

    def attach(self, policy: Policy) -> None:
        """From now on answer for this policy."""
        self._policy = policy

    async def GetPolicyInfo(
        self, request: wire.GetPolicyInfoRequest, context: Any
    ) -> wire.GetPolicyInfoResponse:
        """Who the model is, and what its engine can do."""
        policy = self._loaded()
        return wire.GetPolicyInfoResponse(
            model=model_info(policy.facts, policy.version),
            engine=policy.engine.name,
            capabilities=sorted(policy.engine.capabilities),
        )

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> wire.GenerateResponse:
        """Completions for every prompt, in order."""
        policy = self._loaded()
        policy.check_fingerprint(request.tokenizer_fingerprint)
        sampling = sampling_of(request.sampling, most_new_tokens=self._max_new_tokens)
        count = request.sampling.num_completions or 1
        check_limits(len(request.prompts), count, most=self._max_completions)
        prompts = [prompt_ids(prompt, policy, f"prompts[{at}]") for at, prompt in enumerate(request.prompts)]
        requests = requests_for(prompts, sampling, count)
        required = version_of(request.required_version) if request.HasField("required_version") else None
        drafts, spans = await self._generate(requests, required)
        completions = [
            completion_of(draft, policy.engine.decode(draft.token_ids), noted)
            for draft, noted in zip(drafts, spans, strict=True)
        ]
        return wire.GenerateResponse(
            results=[
                wire.GeneratedCompletions(
                    prompt_token_ids=ids_message(ids),
                    completions=completions[at * count : (at + 1) * count],
                )
                for at, ids in enumerate(prompts)
            ]
        )

    async def GenerateStream(
        self, request: wire.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[wire.GenerateStreamResponse]:
        """One prompt's completions, token by token, each with the version that drew it; the last message of each
        completion says why it ended."""
        policy = self._loaded()
        policy.check_fingerprint(request.tokenizer_fingerprint)
        sampling = sampling_of(request.sampling, most_new_tokens=self._max_new_tokens)
        count = request.sampling.num_completions or 1
        check_limits(1, count, most=self._max_completions)
        requests = requests_for([prompt_ids(request.prompt, policy, "prompt")], sampling, count)
        texts = [TextSoFar(policy.engine.decode) for _ in requests]
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[int, int, float, Version] | None]()

        def emit(index: int, token: int, logprob: float) -> None:
            # On the model's thread, where versions change: it is the one that drew this token.
            loop.call_soon_threadsafe(arrived.put_nowait, (index, token, logprob, policy.version))

        running = asyncio.ensure_future(self._generate(requests, None, emit))
        running.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (item := await arrived.get()) is not None:
                yield _token_message(*item, texts[item[0]])
            drafts, spans = await running
        finally:
            running.cancel()
        for index, (draft, noted) in enumerate(zip(drafts, spans, strict=True)):
            yield _last_message(index, draft, texts[index].rest(), noted[-1][1] if noted else policy.version)

    async def _generate(
        self, requests: list[Request], required: Version | None, emit: Emit | None = None
    ) -> tuple[list[Draft], list[Spans]]:
        """On the model's thread; a caller that goes away stops the work."""
        policy, stopping = self._loaded(), threading.Event()

        def work() -> tuple[list[Draft], list[Spans]]:
            policy.apply_offered()
            if required is not None:
                policy.require(required)
            return policy.generate_noted(requests, stopping, emit, fixed=required is not None)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            stopping.set()

    def _loaded(self) -> Policy:
        if self._policy is None:
            raise Unavailable("the policy is loading")
        return self._policy


def _token_message(
    index: int, token: int, logprob: float, version: Version, text: TextSoFar
) -> wire.GenerateStreamResponse:
    # An engine that gives none says so with NaN, which does not go on the wire.
    known = [] if math.isnan(logprob) else [logprob]
    return wire.GenerateStreamResponse(
        completion_index=index,
        token_ids=from_numpy(np.array([token], np.int32)),
        text=text.after(token),
        raw_logprobs=from_numpy(np.array(known, np.float32)),
        version=version_message(version),
    )


def _last_message(index: int, draft: Draft, text: str, version: Version) -> wire.GenerateStreamResponse:
    reason = common.FINISH_REASON_STOP if draft.finish == "stop" else common.FINISH_REASON_LENGTH
    return wire.GenerateStreamResponse(
        completion_index=index, text=text, finish_reason=reason, version=version_message(version)
    )
