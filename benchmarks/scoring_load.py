"""Owns the callers of benchmarks.scoring: one asyncio process that sends texts and takes the time. Knows no model.

    python -m benchmarks.scoring_load < plan.json > result.json

Closed loop: `clients` at a time, each with one call of `rows_per_call` texts, the next as soon as it is answered, texts
in their order. Open loop: a call at each of `arrivals`, answered or not; its latency counts from the arrival.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

MODEL = "scored"
CALL_SECONDS = 900.0
Send = Callable[[Sequence["Text"]], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A dialogue. whole: as the service renders prompt and completion, for servers that take one text."""

    prompt: str
    completion: str
    whole: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send where. way: a key of WAYS. arrivals: seconds from the start, for an open loop."""

    way: str
    address: str
    texts: tuple[Text, ...]
    clients: int = 1
    rows_per_call: int = 1
    arrivals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """seconds: from the first call to the last answer; scores: of each text, in order; latencies: of each call."""

    seconds: float
    scores: tuple[float, ...]
    latencies: tuple[float, ...]


# ------------------------------------------------------------------ ways of asking


async def _grpc(address: str, stack: AsyncExitStack) -> Send:
    from trimtab import AsyncRewardClient

    client = await stack.enter_async_context(AsyncRewardClient(address, timeout_seconds=CALL_SECONDS))

    async def send(texts: Sequence[Text]) -> list[float]:
        prompts, completions = [text.prompt for text in texts], [text.completion for text in texts]
        return list(await client.values(prompts, completions, model=MODEL))

    await client.list_models()
    return send


async def _http(address: str, stack: AsyncExitStack) -> Send:
    client = await stack.enter_async_context(_client(address))

    async def send(texts: Sequence[Text]) -> list[float]:
        inputs = [{"prompt": text.prompt, "completion": text.completion} for text in texts]
        answer = await _post(client, "/v1/score", {"model": MODEL, "inputs": inputs})
        return [score["value"] for score in answer["scores"]]

    return send


def _one_by_one(path: str) -> Callable[[str, AsyncExitStack], Awaitable[Send]]:
    """A server that takes one text a request and batches by itself: a client's texts go out together."""

    async def way(address: str, stack: AsyncExitStack) -> Send:
        client = await stack.enter_async_context(_client(address))

        async def one(text: Text) -> float:
            return float((await _post(client, path, {"text": text.whole}))["score"])

        async def send(texts: Sequence[Text]) -> list[float]:
            return list(await asyncio.gather(*map(one, texts)))

        return send

    return way


async def _vllm(address: str, stack: AsyncExitStack) -> Send:
    client = await stack.enter_async_context(_client(address))

    async def send(texts: Sequence[Text]) -> list[float]:
        body = {
            "model": MODEL,
            "input": [text.whole for text in texts],
            "use_activation": False,
            "truncate_prompt_tokens": -1,
            "truncation_side": "left",
        }
        data = (await _post(client, "/classify", body))["data"]
        return [float(each["probs"][0]) for each in sorted(data, key=lambda each: int(each["index"]))]

    return send


def _client(address: str) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        base_url=f"http://{address}",
        timeout=CALL_SECONDS,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
    )


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await client.post(path, json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code}: {answer.text[:300]}")
    return answer.json()


WAYS: dict[str, Callable[[str, AsyncExitStack], Awaitable[Send]]] = {
    "grpc": _grpc,
    "http": _http,
    "mosec": _one_by_one("/inference"),
    "litserve": _one_by_one("/predict"),
    "vllm": _vllm,
}

# ------------------------------------------------------------------ loops


async def closed_loop(send: Send, plan: Plan) -> Seen:
    """All texts once, `clients` calls in flight."""
    starts = iter(range(0, len(plan.texts), plan.rows_per_call))
    scores: dict[int, list[float]] = {}
    latencies: dict[int, float] = {}
    began = time.perf_counter()

    async def client() -> None:
        for start in starts:
            sent = time.perf_counter()
            scores[start] = await send(plan.texts[start : start + plan.rows_per_call])
            latencies[start] = time.perf_counter() - sent

    await asyncio.gather(*(client() for _ in range(plan.clients)))
    return _seen(time.perf_counter() - began, scores, latencies)


async def open_loop(send: Send, plan: Plan) -> Seen:
    """One text at each arrival, the texts from the beginning again where there are more arrivals."""
    scores: dict[int, list[float]] = {}
    latencies: dict[int, float] = {}
    began = time.perf_counter()

    async def call(index: int, arrival: float) -> None:
        await asyncio.sleep(began + arrival - time.perf_counter())
        scores[index] = await send([plan.texts[index % len(plan.texts)]])
        latencies[index] = time.perf_counter() - began - arrival

    await asyncio.gather(*(call(index, arrival) for index, arrival in enumerate(plan.arrivals)))
    return _seen(time.perf_counter() - began, scores, latencies)


def _seen(seconds: float, scores: dict[int, list[float]], latencies: dict[int, float]) -> Seen:
    return Seen(
        seconds=seconds,
        scores=tuple(score for start in sorted(scores) for score in scores[start]),
        latencies=tuple(latencies[start] for start in sorted(latencies)),
    )


async def run(plan: Plan) -> Seen:
    """Connect, send, measure. RuntimeError for an answer that is no score."""
    async with AsyncExitStack() as stack:
        send = await WAYS[plan.way](plan.address, stack)
        return await (open_loop if plan.arrivals else closed_loop)(send, plan)


def to_json(plan: Plan) -> str:
    """The plan as this program reads it."""
    return json.dumps(asdict(plan))


def from_json(text: str) -> Plan:
    """Inverse of `to_json`."""
    read = json.loads(text)
    texts = tuple(Text(**each) for each in read.pop("texts"))
    return Plan(texts=texts, arrivals=tuple(read.pop("arrivals")), **read)


def main() -> None:
    """Standard input to standard output; one line on standard error where it fails."""
    try:
        seen = asyncio.run(run(from_json(sys.stdin.read())))
    except Exception as error:  # whatever a server or a client library may do
        print(f"benchmarks.scoring_load: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
