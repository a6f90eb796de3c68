"""Patterns that a row makes exponential end in time."""

from __future__ import annotations

from typing import Any

import pytest
import regex

from services.common.errors import InvalidInput
from services.common.rules import make_rule
from services.common.rules.bounded_regex import BoundedPattern


@pytest.mark.parametrize("mode", ["search", "fullmatch", "count"])
def test_a_catastrophic_row_is_an_error(mode: str) -> None:
    """A pattern with exponential backtracking gives InvalidInput for the row, after a bounded time."""
    rule = make_rule(f"regex:mode={mode},pattern=(a|aa)+$")
    assert rule.score("", "aaaa", {}) == 1.0
    with pytest.raises(InvalidInput, match="still searching 5001 characters after 1 s"):
        rule.score("", "a" * 5000 + "!", {})


def test_lookaround_and_backreferences_work() -> None:
    """What a linear engine would not know is understood."""
    assert BoundedPattern(r"(?<=<b>)(\w+) \1(?=</b>)", what="test").search("<b>ha ha</b>") is not None
    assert BoundedPattern("(a)(b)?", what="test").groups == 2


class Hasty:
    """A compiled pattern whose first search ends at once: other threads have used up its processor time."""

    def __init__(self, pattern: str) -> None:
        self.limits: list[float] = []
        self._pattern = regex.compile(pattern)

    def search(self, text: str, *, timeout: float, concurrent: bool) -> Any:
        self.limits.append(timeout)
        if len(self.limits) == 1:
            raise TimeoutError
        return self._pattern.search(text)


def test_a_search_that_ended_before_its_time_begins_again() -> None:
    """The package counts the processor time of all threads; a second is a second of the wall's clock all the same."""
    pattern = BoundedPattern("b+", what="test")
    hasty = pattern._compiled = Hasty("b+")  # type: ignore[assignment]
    found = pattern.search("abba")
    assert found is not None
    assert found[0] == "bb"
    # At least the time that is left, more where several processors were busy.
    assert hasty.limits[0] == 1.0
    assert hasty.limits[1] > 0.5


def test_replacing_is_bounded_and_literal() -> None:
    """What replaces a match stands there as it is, and a catastrophic text is an error in time."""
    pattern = BoundedPattern("(a|aa)+$", what="test", seconds=0.1)
    assert pattern.sub(r"\1[x]", "baa") == r"b\1[x]"
    with pytest.raises(InvalidInput, match="still searching 5001 characters"):
        pattern.sub("x", "a" * 5000 + "!")
