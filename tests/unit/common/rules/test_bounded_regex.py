"""Patterns that a row makes exponential end in time."""

from __future__ import annotations

import pytest

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
