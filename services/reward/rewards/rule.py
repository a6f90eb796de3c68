"""A rule as a RewardSource. Owns nothing of what rules there are: services/common/rules does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal

from services.common.errors import Mismatch, TrimtabError
from services.common.rules import Rule
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceDescription, outcome_of
from services.reward.rewards.pool import RowPool


class RuleReward:
    """Scores each row by the same rule that the built-in annotator may use."""

    kind: Literal["rule"] = "rule"

    def __init__(self, rule: Rule, *, max_queued_rows: int = 16384) -> None:
        self._rule = rule
        # Rules hold the interpreter: a second thread would gain nothing.
        self._pool = RowPool(rule.name.partition(":")[0], threads=1, max_rows=max_queued_rows)

    @property
    def digest(self) -> str:
        """The rule's digest, hex."""
        return self._rule.digest

    def describe(self) -> SourceDescription:
        """A rule reads text and cuts nothing."""
        return SourceDescription(input_kind="text")

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit."""
        return self._pool.submit(rows, caller, lambda taken: [self._one(row) for row in taken])

    def close(self) -> None:
        """See RewardSource.close."""
        self._pool.close()

    def _one(self, row: ScoreRow) -> ScoreOutcome:
        if row.ids is not None:
            return ScoreOutcome(error=Mismatch("the input has token ids only, but a rule reads text"))
        try:
            return outcome_of(self._rule.score(row.prompt, row.completion, row.columns))
        except TrimtabError as error:
            return ScoreOutcome(error=error)
