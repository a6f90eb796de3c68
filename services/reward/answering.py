"""One call from its rows to its scores, for gRPC and HTTP alike: bounds, unreadable rows, shadow, watching.
Knows no wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common import tracing
from services.common.errors import Expired, InvalidInput, UserError
from services.common.validation import require
from services.reward.observing import SILENT, Observer
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow
from services.reward.scoring import RewardModels, Scored
from services.reward.shadow import ShadowRunner

Decoded = ScoreRow | UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Of one call: rows, and characters of one row."""

    rows: int
    characters: int


class Answering:
    """Answers calls from the table of models, on the event loop; nothing here computes."""

    def __init__(
        self,
        models: RewardModels,
        shadows: ShadowRunner,
        limits: CallLimits,
        *,
        observer: Observer = SILENT,
    ) -> None:
        self._models = models
        self._shadows = shadows
        self._limits = limits
        self._observer = observer

    def check_count(self, count: int) -> None:
        """InvalidInput for no rows or too many. To be asked before the rows are decoded."""
        require(count > 0, "inputs", "expected at least one input, got nothing")
        require(count <= self._limits.rows, "inputs", f"expected at most {self._limits.rows}, got {count}")

    async def answer(self, model: str, rows: Sequence[Decoded], caller: Caller) -> Scored:
        """One outcome for each row, in order; a row that could not be read has its error in its place.

        The call fails only when no row can be read. Cancelling it drops what has not begun.
        """
        began = time.perf_counter()
        caller = replace(caller, trace=tracing.current())
        checked = [self._sized(row) for row in rows]
        for row in checked:
            if isinstance(row, UserError):
                self._observer.failed(model, 1, row)
        readable = [row for row in checked if isinstance(row, ScoreRow)]
        if not readable:
            raise _first(checked)
        try:
            scored = await self._scored(model, readable, caller)
        except BaseException as error:
            self._observer.failed(model, len(readable), error)
            raise
        self._shadows.offer(scored, readable)
        self._observer.answered(scored, readable, caller, time.perf_counter() - began)
        outcomes = iter(scored.outcomes)
        merged = [
            next(outcomes) if isinstance(row, ScoreRow) else ScoreOutcome(error=_at(index, row))
            for index, row in enumerate(checked)
        ]
        return replace(scored, outcomes=merged)

    async def _scored(self, model: str, rows: Sequence[ScoreRow], caller: Caller) -> Scored:
        if caller.deadline is None:
            return await asyncio.wrap_future(self._models.submit(model, rows, caller))
        try:
            async with asyncio.timeout(caller.deadline - time.monotonic()):
                return await asyncio.wrap_future(self._models.submit(model, rows, caller))
        except TimeoutError:
            raise Expired("no score within the deadline") from None

    def _sized(self, row: Decoded) -> Decoded:
        if isinstance(row, ScoreRow):
            length = len(row.completion) + sum(len(content) for _, content in row.messages)
            if row.ids is not None:
                length = len(row.ids.prompt) + len(row.ids.completion)
            if length > self._limits.characters:
                return InvalidInput(f"{length} characters are too long; at most {self._limits.characters}")
        return row


def _first(rows: Sequence[Decoded]) -> UserError:
    index, error = next((index, row) for index, row in enumerate(rows) if isinstance(row, UserError))
    return _at(index, error)


def _at(index: int, error: UserError) -> UserError:
    return type(error)(f"inputs[{index}]: {error}")
