"""Owns regular expressions that stop in time: an operator writes the pattern, but a row may make it exponential.

Decision: the package `regex` with its `timeout`, which checks the clock inside the matcher and lets other
threads run meanwhile. Rejected: RE2, linear by construction, which knows neither lookaround nor backreferences.

That clock is C's clock(), the processor time of the whole process (mrab-regex issue 393): beside a model that computes
on eight threads a second of it passes in an eighth of a second. A search that ended before its time begins again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import regex

from services.common.errors import InvalidInput

MATCH_SECONDS = 1.0
_PROCESSORS = os.cpu_count() or 1
_Found = TypeVar("_Found")


class BoundedPattern:
    """A compiled pattern. Every match raises InvalidInput after `seconds` of time.monotonic."""

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
        return self._timed(text, lambda left: self._compiled.search(text, timeout=left, concurrent=True))

    def fullmatch(self, text: str) -> regex.Match[str] | None:
        """A match of the whole text."""
        return self._timed(text, lambda left: self._compiled.fullmatch(text, timeout=left, concurrent=True))

    def count(self, text: str) -> int:
        """The number of matches that do not overlap."""

        def counted(left: float) -> int:
            return sum(1 for _ in self._compiled.finditer(text, timeout=left, concurrent=True))

        return self._timed(text, counted)

    def sub(self, replacement: str, text: str) -> str:
        """The text with every match replaced by `replacement` as it stands."""

        def replaced(left: float) -> str:
            return self._compiled.sub(lambda _: replacement, text, timeout=left, concurrent=True)

        return self._timed(text, replaced)

    def _timed(self, text: str, search: Callable[[float], _Found]) -> _Found:
        """`search(limit)`, again where it ended before its time: its limit is of processor time."""
        began = time.monotonic()
        ends = began + self._seconds
        limit = self._seconds
        while True:
            try:
                return search(limit)
            except TimeoutError:
                now = time.monotonic()
                if now >= ends:
                    raise self._too_slow(text) from None
                # As many processors as this process has kept busy, for all of the time that is left.
                limit = min(limit / max(now - began, 0.001), _PROCESSORS) * (ends - now)
                began = now

    def _too_slow(self, text: str) -> InvalidInput:
        return InvalidInput(
            f"{self._what}: the pattern was still searching {len(text)} characters after {self._seconds:g} s",
            {"completion": "text that the pattern can search in time"},
        )
