"""Owns the regex rule. Its pattern comes from an operator's configuration, never from a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from services.common.rules.base import check_length, rule_digest
from services.common.rules.bounded_regex import BoundedPattern

Mode = Literal["search", "fullmatch", "count"]


class RegexRule:
    """Whether (search, fullmatch: 1 or 0) or how often (count) a pattern matches the completion.

    Patterns are those of the package `regex`, which reads Python's own and more.
    """

    def __init__(self, *, pattern: str, mode: Mode = "search") -> None:
        self._pattern = BoundedPattern(pattern, what="regex rule")
        self._mode = mode
        self.name = f"regex:pattern={pattern}" if mode == "search" else f"regex:mode={mode},pattern={pattern}"
        self.digest = rule_digest("regex", 2, pattern=pattern, mode=mode)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """1 or 0; in mode `count` the number of matches that do not overlap."""
        check_length(completion)
        if self._mode == "count":
            return float(self._pattern.count(completion))
        match = self._pattern.search if self._mode == "search" else self._pattern.fullmatch
        return 1.0 if match(completion) else 0.0
