"""The port of whoever watches scoring: metrics, drift, logs. Knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.reward.batching import BatchFacts
from services.reward.rewards.base import Caller, ScoreRow
from services.reward.scoring import Scored


class Observer(Protocol):
    """Hears of runs and of answers. Called on the model's and on the event loop's thread: must be quick."""

    def batch(self, model: str, facts: BatchFacts) -> None:
        """A forward pass has ended."""
        ...

    def answered(self, scored: Scored, rows: Sequence[ScoreRow], caller: Caller, seconds: float) -> None:
        """A call or a batch of the stage has been answered."""
        ...


class _Silent:
    def batch(self, model: str, facts: BatchFacts) -> None:
        """Nothing."""

    def answered(self, scored: Scored, rows: Sequence[ScoreRow], caller: Caller, seconds: float) -> None:
        """Nothing."""


SILENT: Observer = _Silent()
