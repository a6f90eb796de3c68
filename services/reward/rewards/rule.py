"""A rule as a RewardSource. Owns nothing of what rules there are: services/common/rules does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.common.errors import TrimtabError
from services.common.rules import Rule
from services.reward.rewards.base import ScoreOutcome, ScoreRow, SourceDescription, outcome_of


class RuleReward:
    """Scores each row by the same rule that the built-in annotator may use."""

    kind: Literal["rule"] = "rule"

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    @property
    def digest(self) -> str:
        """The rule's digest, hex."""
        return self._rule.digest

    def describe(self) -> SourceDescription:
        """A rule reads text and cuts nothing."""
        return SourceDescription(input_kind="text")

    def score(self, rows: Sequence[ScoreRow]) -> list[ScoreOutcome]:
        """See RewardSource.score."""
        return [self._one(row) for row in rows]

    def _one(self, row: ScoreRow) -> ScoreOutcome:
        try:
            return outcome_of(self._rule.score(row.prompt, row.completion, row.columns))
        except TrimtabError as error:
            return ScoreOutcome(error=error)
