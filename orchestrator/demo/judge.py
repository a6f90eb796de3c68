"""The evaluation over the services: answers before and after, the annotator's own scores, log-probs of both.

The reward model has no say in it. Figures are computed by evaluation.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.demo.collect import DemoPrompt, persist
from orchestrator.demo.evaluation import Answers
from services.common.arrays import Array, to_numpy
from services.common.rules import Rule
from trimtab import AsyncReferenceClient
from trimtab.policy.v1 import policy_pb2 as policy

_CALL_SEQUENCES = 64


def answers_of(
    prompts: Sequence[DemoPrompt], results: Sequence[policy.GeneratedCompletions], rule: Rule
) -> Answers:
    """Texts, ids and the annotator's scores, [prompts, completions]."""
    texts = [[one.text for one in result.completions] for result in results]
    return Answers(
        texts=texts,
        token_ids=[[to_numpy(one.token_ids).tolist() for one in result.completions] for result in results],
        scores=np.array(
            [
                [rule.score(prompt.text, text, {}) for text in row]
                for prompt, row in zip(prompts, texts, strict=True)
            ]
        ),
    )


def policy_logprobs(results: Sequence[policy.GeneratedCompletions]) -> list[Array]:
    """The policy's own log-probs at temperature 1, flat, prompt by prompt."""
    return [to_numpy(one.raw_logprobs) for result in results for one in result.completions]


async def reference_logprobs(
    client: AsyncReferenceClient,
    ready: Callable[[], Awaitable[object]],
    results: Sequence[policy.GeneratedCompletions],
) -> list[Array]:
    """Log-probs of the same tokens under the reference at temperature 1, flat, prompt by prompt."""
    pairs = [
        (to_numpy(result.prompt_token_ids), to_numpy(one.token_ids))
        for result in results
        for one in result.completions
    ]
    parts = [pairs[start : start + _CALL_SEQUENCES] for start in range(0, len(pairs), _CALL_SEQUENCES)]

    async def part_of(part: Sequence[tuple[Array, Array]]) -> Any:
        async def call() -> Any:
            return await client.logprobs(part, temperature=1.0, timeout_seconds=300)

        return await persist(call, ready)

    answers = await asyncio.gather(*map(part_of, parts))
    return [np.array(values, np.float32) for answer in answers for values in answer]
