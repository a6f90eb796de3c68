"""The ports of whoever watches scoring: metrics, drift, logs. Knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from services.reward.batching import BatchFacts
from services.reward.rewards.base import Caller, RewardSource, ScoreRow

if TYPE_CHECKING:
    from services.reward.scoring import Scored


class TableListener(Protocol):
    """Hears of the table of models, under its lock and before a change takes hold: an error stops the change."""

    def opened(self, model: str, source: RewardSource) -> None:
        """A source stands behind the name now, for the first time or instead of another."""
        ...

    def closed(self, model: str) -> None:
        """Nothing stands behind the name any more."""
        ...


class Observer(TableListener, Protocol):
    """Hears of runs and of answers too. Called on the models' and the event loop's threads: must be quick."""

    def tokenised(self, model: str, seconds: float) -> None:
        """The rows of a call have become tokens."""
        ...

    def batch(self, model: str, facts: BatchFacts) -> None:
        """A forward pass has ended."""
        ...

    def padded(self, model: str, tokens: int) -> None:
        """A forward pass had this much padding. Packed models never say this."""
        ...

    def answered(self, scored: Scored, rows: Sequence[ScoreRow], caller: Caller, seconds: float) -> None:
        """A call or a batch of the stage has been answered."""
        ...

    def failed(self, model: str, rows: int, error: BaseException) -> None:
        """A call has failed as a whole: refused, expired, cancelled."""
        ...


class _Silent:
    """Hears nothing."""

    def opened(self, model: str, source: RewardSource) -> None:
        """Nothing."""

    def closed(self, model: str) -> None:
        """Nothing."""

    def tokenised(self, model: str, seconds: float) -> None:
        """Nothing."""

    def batch(self, model: str, facts: BatchFacts) -> None:
        """Nothing."""

    def padded(self, model: str, tokens: int) -> None:
        """Nothing."""

    def answered(self, scored: Scored, rows: Sequence[ScoreRow], caller: Caller, seconds: float) -> None:
        """Nothing."""

    def failed(self, model: str, rows: int, error: BaseException) -> None:
        """Nothing."""


SILENT: Observer = _Silent()
