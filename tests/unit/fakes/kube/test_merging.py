"""What comes of a live and an applied value, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.merging import merge, merged_order, without
from tests.unit.fakes.kube.shapes import WHOLE

ITEM = 'k:{"name":"a"}'


@pytest.mark.parametrize(
    ("live", "applied", "merged"),
    [
        ({"text": "x", "number": 1}, {"text": "y"}, {"text": "y", "number": 1}),
        ({"inner": {"a": 1}}, {"inner": {"b": 2}}, {"inner": {"a": 1, "b": 2}}),
        ({"words": ["a", "b"]}, {"words": ["c"]}, {"words": ["c"]}),
        ({"fixed": {"a": "1"}}, {"fixed": {"b": "2"}}, {"fixed": {"b": "2"}}),
        ({"labels": {"a": "1"}}, {"labels": {"b": "2"}}, {"labels": {"a": "1", "b": "2"}}),
        ({"tags": ["a"]}, {"tags": ["b"]}, {"tags": ["a", "b"]}),
        (
            {"items": [{"name": "a", "value": "1"}]},
            {"items": [{"name": "a", "more": {"x": 1}}, {"name": "b"}]},
            {"items": [{"name": "a", "value": "1", "more": {"x": 1}}, {"name": "b"}]},
        ),
        # The same port whether or not it says its protocol.
        (
            {"ports": [{"port": 80, "protocol": "TCP", "name": "http"}]},
            {"ports": [{"port": 80, "name": "web"}]},
            {"ports": [{"port": 80, "protocol": "TCP", "name": "web"}]},
        ),
        ({"text": "x"}, {"text": None}, {"text": None}),
    ],
)
def test_an_applied_value_is_laid_over_the_live_one(live: Any, applied: Any, merged: Any) -> None:
    """Maps and keyed lists are joined, all else is replaced; nothing is changed in place."""
    before = repr(live)
    assert merge(WHOLE, live, applied) == merged
    assert repr(live) == before


@pytest.mark.parametrize(
    ("left", "right", "order"),
    [
        ("ab", "ab", "ab"),
        ("ab", "ba", "ba"),
        ("axb", "ab", "axb"),
        ("ab", "anb", "anb"),
        ("ab", "abn", "abn"),
        ("x", "a", "xa"),
        ("", "ab", "ab"),
        ("ab", "", "ab"),
        ("axb", "bna", "xbna"),
    ],
)
def test_the_applied_order_holds_and_others_stay_between_their_neighbours(
    left: str, right: str, order: str
) -> None:
    """What the live one alone has keeps its place."""
    assert merged_order(list(left), list(right)) == list(order)


@pytest.mark.parametrize(
    ("value", "doomed", "left"),
    [
        ({"text": "x", "number": 1}, [("f:text",)], {"number": 1}),
        ({"inner": {"a": 1, "b": 2}}, [("f:inner", "f:a")], {"inner": {"b": 2}}),
        ({"inner": {"a": 1}}, [("f:inner", "f:a")], {}),
        ({"items": [{"name": "a"}, {"name": "b"}]}, [("f:items", ITEM)], {"items": [{"name": "b"}]}),
        (
            {"items": [{"name": "a", "value": "1"}]},
            [("f:items", ITEM, "f:value")],
            {"items": [{"name": "a"}]},
        ),
        ({"tags": ["a", "b"]}, [("f:tags", 'v:"a"')], {"tags": ["b"]}),
        # What is not there cannot go; an atomic value has no parts.
        ({"text": "x"}, [("f:number",), ("f:inner", "f:a")], {"text": "x"}),
        ({"fixed": {"a": "1"}}, [("f:fixed", "f:a")], {"fixed": {"a": "1"}}),
        ({"text": "x"}, [("f:text",)], {}),
    ],
)
def test_a_value_without_some_of_its_fields(value: Any, doomed: list[tuple[str, ...]], left: Any) -> None:
    """Containers that become empty go with them."""
    assert without(WHOLE, value, frozenset(doomed)) == left
