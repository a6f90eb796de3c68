"""Owns the callers of benchmarks.overload: one asyncio process that asks one public API and counts what it is told.

    python -m benchmarks.overload_load < plan.json > result.json

Closed loop: so many callers at a time, each with its next call as soon as the last one is answered, refusals too:
nobody waits as a refusal asks. Knows no service but by its contract.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

CALL_SECONDS = 60.0
CHANNELS = 8
REFUSED, HINTLESS, ANSWERED = "refused", "refused_without_hint", "answered"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Ask = Callable[[int], Awaitable[str]]
"""A call, by its caller's number; how it ended: ANSWERED, REFUSED, HINTLESS, or something that should not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which API where, by how many callers for how long. prompt: a short one. model: of a reward service."""

    api: str
    address: str
    callers: int
    seconds: float
    prompt: str
    model: str = "reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Calls by how they ended, and the seconds from the first call to the last answer."""

    ends: dict[str, int]
    seconds: float


# ------------------------------------------------------------------ over gRPC


def _requests(plan: Plan) -> dict[str, tuple[str, Any]]:
    """API to method and request; small ones, for it is their number that is tried."""
    from trimtab.clients.reference import logprobs_request
    from trimtab.common.v1 import common_pb2 as common
    from trimtab.learner.v1 import learner_pb2
    from trimtab.policy.v1 import policy_pb2
    from trimtab.preference.v1 import preference_pb2
    from trimtab.reward.v1 import reward_pb2
    from trimtab.rollout.v1 import rollout_pb2
    from trimtab.weights.v1 import weights_pb2

    sampling = common.SamplingOptions(temperature=1.0, top_p=1.0, max_new_tokens=10, num_completions=8)
    prompt = rollout_pb2.Prompt(prompt_id="0", text=plan.prompt)
    scored = reward_pb2.ScoreInput(prompt=plan.prompt, completion=plan.prompt)
    return {
        "generate": (
            "trimtab.policy.v1.PolicyService/Generate",
            policy_pb2.GenerateRequest(prompts=[prompt], sampling=sampling),
        ),
        "logprobs": (
            "trimtab.reference.v1.ReferenceService/ComputeLogProbs",
            logprobs_request([([0, 1], [1, 2])], 1.0, ""),
        ),
        "score": (
            "trimtab.reward.v1.RewardService/Score",
            reward_pb2.ScoreRequest(model=plan.model, inputs=[scored]),
        ),
        "weights": (
            "trimtab.weights.v1.WeightService/GetManifest",
            weights_pb2.GetManifestRequest(),
        ),
        "status": (
            "trimtab.learner.v1.LearnerService/GetRunStatus",
            learner_pb2.GetRunStatusRequest(),
        ),
        "statistics": (
            "trimtab.preference.v1.PreferenceService/GetStatistics",
            preference_pb2.GetStatisticsRequest(),
        ),
    }


async def _by_grpc(plan: Plan, stack: AsyncExitStack) -> Ask:
    import grpc

    method, request = _requests(plan)[plan.api]
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [grpc.aio.insecure_channel(plan.address, options=options) for _ in range(CHANNELS)]
    for channel in channels:
        stack.push_async_callback(channel.close)
    calls: list[Any] = [channel.unary_unary(f"/{method}") for channel in channels]
    payload = request.SerializeToString()

    async def ask(number: int) -> str:
        try:
            await calls[number % CHANNELS](payload, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                return f"{error.code().name}: {error.details()}"[:200]
            trailing = {key for key, _ in error.trailing_metadata() or ()}
            return REFUSED if "grpc-status-details-bin" in trailing else HINTLESS
        return ANSWERED

    return ask


# ------------------------------------------------------------------ over HTTP


async def _by_http(plan: Plan, stack: AsyncExitStack) -> Ask:
    """Each caller keeps a connection. Bare: a client's pool of thousands would be what is measured."""
    body = json.dumps(
        {"model": plan.model, "inputs": [{"prompt": plan.prompt, "completion": plan.prompt}]}
    ).encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: {plan.address}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    connections: dict[int, Connection] = {}

    def close() -> None:
        for _, writer in connections.values():
            writer.close()

    stack.callback(close)

    async def ask(number: int) -> str:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if number not in connections:
                    connections[number] = await _connected(plan.address)
                status, headers = await _exchanged(connections[number], request)
        except (OSError, EOFError, TimeoutError) as error:
            if number in connections:
                connections.pop(number)[1].close()
            return f"{type(error).__name__}: {error}"[:200]
        if b"connection: close" in headers:
            connections.pop(number)[1].close()
        if status == 429:
            return REFUSED if b"retry-after:" in headers else HINTLESS
        return ANSWERED if status == 200 else f"HTTP {status}"

    return ask


async def _connected(address: str) -> Connection:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _exchanged(connection: Connection, request: bytes) -> tuple[int, bytes]:
    """Status and headers, in lower case, of the answer, whose body is read and dropped."""
    reader, writer = connection
    writer.write(request)
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = headers.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(headers.split(b" ", 2)[1]), headers


# ------------------------------------------------------------------ the callers


async def asking(plan: Plan, stack: AsyncExitStack) -> Ask:
    """One call of the API, over connections that last as long as `stack`."""
    return await (_by_http if plan.api == "score_http" else _by_grpc)(plan, stack)


async def ask_all(plan: Plan) -> Told:
    """All callers, for so long."""
    ends, began = Counter[str](), time.monotonic()
    async with AsyncExitStack() as stack:
        ask = await asking(plan, stack)

        async def caller(number: int) -> None:
            while time.monotonic() - began < plan.seconds:
                ends[await ask(number)] += 1

        await asyncio.gather(*map(caller, range(plan.callers)))
    return Told(ends=dict(ends), seconds=time.monotonic() - began)


def main() -> None:
    """From stdin to stdout."""
    plan = Plan(**json.load(sys.stdin))
    print(json.dumps(asdict(asyncio.run(ask_all(plan)))), flush=True)


if __name__ == "__main__":
    main()
