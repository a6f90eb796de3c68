"""Owns the regex rule. Trusts its pattern, which comes from an operator's configuration, never from a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from services.common.errors import InvalidInput
from services.common.rules.base import check_length, rule_digest

Mode = Literal["search", "fullmatch", "count"]


class RegexRule:
    """Whether (search, fullmatch: 1 or 0) or how often (count) a pattern matches the completion."""

    def __init__(self, *, pattern: str, mode: Mode = "search") -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise InvalidInput(
                f"regex rule: {pattern!r} is no regular expression: {error}",
                {"pattern": "a regular expression"},
            ) from None
        self._mode = mode
        self.name = f"regex:pattern={pattern}" if mode == "search" else f"regex:mode={mode},pattern={pattern}"
        self.digest = rule_digest("regex", 1, pattern=pattern, mode=mode)

    def score(self, prompt: str, completion: str, columns: Mapping[str, str]) -> float:  # noqa: ARG002
        """1 or 0; in mode `count` the number of matches that do not overlap."""
        check_length(completion)
        if self._mode == "count":
            return float(sum(1 for _ in self._pattern.finditer(completion)))
        match = self._pattern.search if self._mode == "search" else self._pattern.fullmatch
        return 1.0 if match(completion) else 0.0
