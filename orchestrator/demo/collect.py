"""The first two steps over the services' public APIs: sample pairs, have them compared, keep the comparisons.

Owns what is asked of `policy` and `preference`; knows no model and no database.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.common.errors import Expired, InvalidInput, ServiceError, UserError
from services.common.jsonl import json_rows
from trimtab import AsyncPolicyClient, AsyncPreferenceClient, TrimtabClientError
from trimtab.clients.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.preference.v1 import preference_pb2 as preference
from trimtab.rollout.v1 import rollout_pb2 as rollout

Answer = TypeVar("Answer")
_ATTEMPTS = 5
_CALLERS = (InvalidArgumentError, NotFoundError, AlreadyExistsError, FailedPreconditionError)
# A call of many completions on a machine that is busy with other things takes its time.
_GENERATE_SECONDS = 600.0
_POLL_SECONDS = 0.3
_LABEL_SECONDS = 300.0
_UPLOAD_ITEMS = 100


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A prompt of the demo's file."""

    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    split: str

    @property
    def text(self) -> str:
        """The last message's words."""
        return self.messages[-1][1]

    def message(self) -> rollout.Prompt:
        """As the policy takes it."""
        return rollout.Prompt(prompt_id=self.prompt_id, messages=self.chat())

    def chat(self) -> list[common.ChatMessage]:
        """As messages of the contract."""
        return [common.ChatMessage(role=role, content=content) for role, content in self.messages]


def read_prompts(path: Path) -> list[DemoPrompt]:
    """All prompts of a file. Raises InvalidInput naming the line."""
    prompts = [_demo_prompt(place, row) for place, row in json_rows(path)]
    if not prompts:
        raise InvalidInput(f"{path}: the prompt file is empty")
    return prompts


def _demo_prompt(place: str, row: dict[str, Any]) -> DemoPrompt:
    try:
        value = row["prompt"]
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
        pairs = tuple((message["role"], message["content"]) for message in messages)
        if not all(isinstance(said, str) for pair in pairs for said in pair):
            raise TypeError("role and content are text")
        if not pairs or not all(content.strip() for _, content in pairs):
            raise ValueError("an empty prompt")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{place}: prompt: expected text or a list of {{role, content}} ({error})"
        ) from error
    name = str(row.get("prompt_id", place.rpartition(":")[2]))
    return DemoPrompt(name, pairs, str(row.get("split", "train")))


async def persist(call: Callable[[], Awaitable[Answer]], ready: Callable[[], Awaitable[object]]) -> Answer:
    """Make a call; where the service went away in the middle, wait until it serves again and repeat.

    Raises UserError for what the service refuses as the caller's mistake, ServiceError for anything else.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await call()
        except TrimtabClientError as error:
            if not isinstance(error, UnavailableError) or attempt == _ATTEMPTS:
                raise (UserError if isinstance(error, _CALLERS) else ServiceError)(error.message) from error
            # The supervisor needs a moment to see it; then `ready` waits for the restart.
            await asyncio.sleep(1.0)
            await ready()
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples from the policy service in calls of bounded size."""

    client: AsyncPolicyClient
    ready: Callable[[], Awaitable[object]]
    call_prompts: int
    max_new_tokens: int
    required: common.WeightsVersion | None = None

    async def sample(
        self,
        prompts: Sequence[DemoPrompt],
        *,
        count: int,
        seed: int,
        heard: Callable[[int], None],
        arrived: Callable[[int, Sequence[policy.GeneratedCompletions]], Awaitable[None]] | None = None,
    ) -> list[policy.GeneratedCompletions]:
        """`count` completions of each prompt, in order; `heard` is told how many prompts are done.

        `arrived(index of the first prompt, results)` is awaited after each call.
        """
        results: list[policy.GeneratedCompletions] = []
        for start in range(0, len(prompts), self.call_prompts):
            part = tuple(prompts[start : start + self.call_prompts])
            at = len(results)

            async def call(part: tuple[DemoPrompt, ...] = part, at: int = at) -> Any:
                return await self.client.generate(
                    [prompt.message() for prompt in part],
                    required_version=self.required,
                    max_new_tokens=self.max_new_tokens,
                    num_completions=count,
                    seed=(seed << 20) + at,
                    timeout_seconds=_GENERATE_SECONDS,
                )

            answer = await persist(call, self.ready)
            results += answer
            heard(len(results))
            if arrived is not None:
                await arrived(at, answer)
        return results


def item_of(
    prompt: DemoPrompt, name: str, campaign: str, texts: Sequence[tuple[str, str, common.WeightsVersion]]
) -> preference.Item:
    """An item to be compared; texts are (text, source, version)."""
    return preference.Item(
        item_id=name,
        prompt=prompt.chat(),
        campaign=campaign,
        prompt_id=prompt.prompt_id,
        candidates=[
            preference.Candidate(
                candidate_id=f"{name}-{nth}", text=_storable(text), source=source, version=version
            )
            for nth, (text, source, version) in enumerate(texts)
        ],
    )


def _storable(text: str) -> str:
    """A model may write any character; databases keep no NUL, and nobody who compares would see one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Comparisons:
    """Items into the preference service, comparisons out of it."""

    def __init__(self, client: AsyncPreferenceClient, ready: Callable[[], Awaitable[object]]) -> None:
        self._client = client
        self._ready = ready

    async def upload(self, items: Sequence[preference.Item]) -> None:
        """Add items; repeating it does no harm."""
        for start in range(0, len(items), _UPLOAD_ITEMS):
            part = items[start : start + _UPLOAD_ITEMS]

            async def call(part: Sequence[preference.Item] = part) -> Any:
                return await self._client.upload(part)

            await persist(call, self._ready)

    async def labelled(
        self,
        campaign: str,
        tasks: int,
        heard: Callable[[int], None],
        timeout_seconds: float = _LABEL_SECONDS,
    ) -> int:
        """Wait until every task has been compared (or skipped); how many comparisons there are. Raises Expired."""
        ends = asyncio.get_running_loop().time() + timeout_seconds
        while True:

            async def call() -> Any:
                return await self._client.statistics(campaign=campaign)

            counts = await persist(call, self._ready)
            heard(counts.comparisons)
            if counts.comparisons >= tasks:  # skipped ones are among them
                return int(counts.comparisons)
            if asyncio.get_running_loop().time() > ends:
                raise Expired(f"{tasks - counts.comparisons} of {tasks} comparisons were not made in time")
            await asyncio.sleep(_POLL_SECONDS)

    async def export(self, campaign: str, path: Path) -> int:
        """Write decided comparisons as JSONL in TRL's schema; how many."""

        async def call() -> list[dict[str, Any]]:
            rows = []
            async for answer in self._client.comparisons(campaign=campaign, include_items=True):
                row = trl_row(answer)
                if row is not None:
                    rows.append(row)
            return rows

        rows = await persist(call, self._ready)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return len(rows)

    async def ratings(self, campaign: str) -> list[dict[str, Any]]:
        """Elo by source, best first."""

        async def call() -> Any:
            return await self._client.ratings(campaign=campaign)

        found = await persist(call, self._ready)
        rows = [
            {
                "subject": one.subject,
                "rating": one.rating,
                "low": one.low,
                "high": one.high,
                "comparisons": one.comparisons,
            }
            for one in found
        ]
        return sorted(rows, key=lambda row: -float(row["rating"]))


def trl_row(answer: preference.StreamComparisonsResponse) -> dict[str, Any] | None:
    """One comparison in TRL's explicit-prompt schema; None for ties, skips, flags and two copies of one text.

    A model may write the same twice, and people give the two different places: no trainer takes such a pair.
    """
    comparison, item = answer.comparison, answer.item
    first, second = comparison.first_candidate_id, comparison.second_candidate_id
    if comparison.choice == preference.CHOICE_FIRST:
        chosen, rejected = first, second
    elif comparison.choice == preference.CHOICE_SECOND:
        chosen, rejected = second, first
    else:
        return None
    texts = {candidate.candidate_id: candidate.text for candidate in item.candidates}
    if texts[chosen] == texts[rejected]:
        return None
    row = {
        "prompt_id": item.prompt_id,
        "prompt": [{"role": message.role, "content": message.content} for message in item.prompt],
        "chosen": [{"role": "assistant", "content": texts[chosen]}],
        "rejected": [{"role": "assistant", "content": texts[rejected]}],
    }
    return row | ({"margin": comparison.margin} if comparison.HasField("margin") else {})
