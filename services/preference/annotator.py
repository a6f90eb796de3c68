"""Owns the built-in annotator: leases tasks, judges them by a rule, records, as a person would.

┌─▶ next_tasks ──none──▶ wait for an upload, at most poll_seconds ─┐
│        │ tasks                                                   │
│      judge (a thread) ──▶ record                                 │
└────────┴───────────────────────◀─────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from services.common.errors import TrimtabError
from services.common.rules import Rule, make_rule
from services.preference.domain import Choice, Comparison, Item, Task, content_id, prompt_text
from services.preference.preferences import Preferences

_MAX_COMMENT = 500
_log = structlog.get_logger(__name__)


class Judge:
    """Compares two candidates by a rule. Which one is shown first makes no difference."""

    def __init__(self, rule: Rule, *, margin: float = 0.0) -> None:
        self._rule = rule
        self._margin = margin
        # The same rule with another margin gives other comparisons.
        self.digest = content_id(rule.digest, repr(margin))
        self.name = rule.name if margin == 0 else f"{rule.name} with margin {margin:g}"

    def choose(self, task: Task) -> tuple[Choice, str]:
        """The choice and a comment: the higher score, TIE up to the margin, SKIP without a score."""
        try:
            first = self._score(task.item, task.first_candidate_id)
            second = self._score(task.item, task.second_candidate_id)
        except TrimtabError as error:
            return Choice.SKIP, str(error)[:_MAX_COMMENT]
        if abs(first - second) <= self._margin:
            return Choice.TIE, ""
        return (Choice.FIRST if first > second else Choice.SECOND), ""

    def compare(self, annotator: str, tasks: Sequence[Task]) -> list[Comparison]:
        """One comparison per task, in order."""
        comparisons = []
        for task in tasks:
            choice, comment = self.choose(task)
            comparisons.append(
                Comparison(
                    task_id=task.task_id,
                    item_id=task.item.item_id,
                    annotator=annotator,
                    first_candidate_id=task.first_candidate_id,
                    second_candidate_id=task.second_candidate_id,
                    choice=choice,
                    comment=comment,
                )
            )
        return comparisons

    def _score(self, item: Item, candidate_id: str) -> float:
        return self._rule.score(prompt_text(item.prompt), item.candidate(candidate_id).text, {})


class BuiltInAnnotator:
    """One annotator's loop over Preferences."""

    def __init__(
        self,
        preferences: Preferences,
        *,
        name: str,
        rule: str,
        margin: float = 0.0,
        campaign: str = "",
        batch_tasks: int = 64,
        poll_seconds: float = 5.0,
    ) -> None:
        """Raises InvalidInput for a rule that is not known. See config.AnnotatorSpec for the units."""
        self._preferences = preferences
        self._name = name
        self._judge = Judge(make_rule(rule), margin=margin)
        self._campaign = campaign
        self._batch_tasks = batch_tasks
        self._poll_seconds = poll_seconds
        self._stopping = asyncio.Event()

    async def register(self) -> None:
        """Write down what this annotator judges by. Mismatch if its name judged by something else before."""
        await self._preferences.register(self._name, rule=self._judge.name, digest=self._judge.digest)

    async def run(self) -> None:
        """Until stop(). What fails is logged and tried again after poll_seconds; its lease is still ours."""
        while not self._stopping.is_set():
            uploads = self._preferences.uploads
            try:
                if await self._annotate():
                    continue
            except TrimtabError as error:
                _log.warning("annotation failed", annotator=self._name, error=str(error))
                uploads = asyncio.Event()  # an upload does not make it work again
            await self._pause(uploads)

    def stop(self) -> None:
        """Let run() return after the batch under way."""
        self._stopping.set()

    async def release(self) -> None:
        """Give back what is leased."""
        await self._preferences.release(self._name)

    async def _annotate(self) -> int:
        tasks = await self._preferences.next_tasks(
            self._name, campaign=self._campaign, limit=self._batch_tasks
        )
        if not tasks:
            return 0
        comparisons = await asyncio.to_thread(self._judge.compare, self._name, tasks)
        await self._preferences.record(comparisons)
        return len(tasks)

    async def _pause(self, uploads: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (uploads, self._stopping)]
        try:
            await asyncio.wait(waiting, timeout=self._poll_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiting:
                waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waiting, return_exceptions=True)
