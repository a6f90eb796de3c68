"""Owns regular expressions that stop in time: an operator writes the pattern, but a row may make it exponential.

Decision: the package `regex` with its `timeout`, which checks the clock inside the matcher and lets other
threads run meanwhile. Rejected: RE2, linear by construction, which knows neither lookaround nor backreferences.
"""

from __future__ import annotations

import regex

from services.common.errors import InvalidInput

MATCH_SECONDS = 1.0


class BoundedPattern:
    """A compiled pattern. Every match raises InvalidInput after `seconds`."""

    def __init__(self, pattern: str, *, what: str, seconds: float = MATCH_SECONDS) -> None:
        try:
            self._compiled = regex.compile(pattern)
        except regex.error as error:
            raise InvalidInput(
                f"{what}: {pattern!r} is no regular expression: {error}", {"pattern": "a regular expression"}
            ) from None
        self._what = what
        self._seconds = seconds

    @property
    def groups(self) -> int:
        """How many groups it captures."""
        return int(self._compiled.groups)

    def search(self, text: str) -> regex.Match[str] | None:
        """The first match anywhere."""
        try:
            return self._compiled.search(text, timeout=self._seconds, concurrent=True)
        except TimeoutError:
            raise self._too_slow(text) from None

    def fullmatch(self, text: str) -> regex.Match[str] | None:
        """A match of the whole text."""
        try:
            return self._compiled.fullmatch(text, timeout=self._seconds, concurrent=True)
        except TimeoutError:
            raise self._too_slow(text) from None

    def count(self, text: str) -> int:
        """The number of matches that do not overlap."""
        try:
            return sum(1 for _ in self._compiled.finditer(text, timeout=self._seconds, concurrent=True))
        except TimeoutError:
            raise self._too_slow(text) from None

    def _too_slow(self, text: str) -> InvalidInput:
        return InvalidInput(
            f"{self._what}: the pattern was still searching {len(text)} characters after {self._seconds:g} s",
            {"completion": "text that the pattern can search in time"},
        )
