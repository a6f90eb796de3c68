"""Somebody who labels all the time, and notes what the preference service has acknowledged.

upload ─▶ next task ─▶ record ─▶ noted            each repeated until it is answered, as a page or a program does
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from trimtab.clients.errors import (
    CancelledError,
    DeadlineExceededError,
    OverloadedError,
    ResourceExhaustedError,
    TrimtabClientError,
    UnavailableError,
)
from trimtab.clients.preference import AsyncPreferenceClient
from trimtab.common.v1.common_pb2 import ChatMessage
from trimtab.preference.v1 import preference_pb2 as wire

CAMPAIGN, ANNOTATOR = "chaos", "ann"
_BETWEEN_SECONDS, _AGAIN_SECONDS, _CALL_SECONDS = 0.2, 0.3, 5.0
_CHOICES = (wire.CHOICE_FIRST, wire.CHOICE_SECOND, wire.CHOICE_TIE)
# What a service that is away, full or overloaded may answer. Anything else is a wrong answer.
_EXPECTED = (
    UnavailableError,
    DeadlineExceededError,
    ResourceExhaustedError,
    OverloadedError,
    CancelledError,
)

Result = TypeVar("Result")
Said = tuple[str, int]
"""Task and choice."""


class Labels:
    """One annotator. `sent` may be there at the end, `acknowledged` must; both by task."""

    def __init__(self, address: str, ledger: Path) -> None:
        self._address, self._ledger = address, ledger
        self.sent: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.uploaded = 0
        self.wrong: list[str] = []

    @property
    def count(self) -> int:
        """Acknowledged so far."""
        return len(self.acknowledged)

    async def run(self) -> None:
        """Until cancelled."""
        async with AsyncPreferenceClient(self._address, timeout_seconds=_CALL_SECONDS) as client:
            for number in itertools.count():
                await self._label(client, number)
                await asyncio.sleep(_BETWEEN_SECONDS)

    async def _label(self, client: AsyncPreferenceClient, number: int) -> None:
        if await self._insist(lambda: client.upload([_item(number)])) is None:
            return
        self.uploaded += 1
        tasks = await self._insist(lambda: client.next_tasks(ANNOTATOR, campaign=CAMPAIGN))
        for task in tasks or []:
            said = wire.Comparison(
                task_id=task.task_id, annotator=ANNOTATOR, choice=_CHOICES[number % len(_CHOICES)]
            )
            self.sent[said.task_id] = said.choice
            if await self._insist(lambda said=said: client.record([said])) is not None:  # type: ignore[misc]
                self.acknowledged[said.task_id] = said.choice
                with self._ledger.open("a") as ledger:
                    ledger.write(json.dumps([said.task_id, said.choice]) + "\n")

    async def _insist(self, call: Callable[[], Awaitable[Result]]) -> Result | None:
        """The same call again until it is answered; None for an answer that should not be."""
        while True:
            try:
                return await call()
            except _EXPECTED:
                await asyncio.sleep(_AGAIN_SECONDS)
            except TrimtabClientError as error:
                self.wrong.append(f"the annotator was told {error}")
                return None

    async def there(self) -> tuple[list[Said], int]:
        """What the service holds in the end: every comparison, and how many items."""
        async with AsyncPreferenceClient(self._address) as client:
            rows = [row.comparison async for row in client.comparisons(campaign=CAMPAIGN)]
            return [(row.task_id, row.choice) for row in rows], (
                await client.statistics(campaign=CAMPAIGN)
            ).items


def _item(number: int) -> wire.Item:
    candidates = [wire.Candidate(candidate_id=name, text=f"{name} {number}") for name in ("a", "b")]
    prompt = [ChatMessage(role="user", content=f"Question {number}?")]
    return wire.Item(item_id=f"item-{number}", prompt=prompt, candidates=candidates, campaign=CAMPAIGN)
