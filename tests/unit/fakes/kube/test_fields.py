"""Sets of fields, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.fields import (
    NotOfType,
    compare,
    field_set,
    from_v1,
    path_text,
    to_v1,
    with_parents,
)
from tests.unit.fakes.kube.shapes import WHOLE


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"text": "x"}, {("f:text",)}),
        ({"inner": {"a": 1, "deep": {"c": 2}}}, {("f:inner", "f:a"), ("f:inner", "f:deep", "f:c")}),
        # An empty object is stated itself; an empty list with keys states nothing; one without is a leaf.
        ({"inner": {}}, {("f:inner",)}),
        ({"items": []}, set()),
        ({"words": []}, {("f:words",)}),
        # Elements are members beside their fields, keys of maps beside their values.
        (
            {"items": [{"name": "a", "value": "1"}]},
            {
                ("f:items", 'k:{"name":"a"}'),
                ("f:items", 'k:{"name":"a"}', "f:name"),
                ("f:items", 'k:{"name":"a"}', "f:value"),
            },
        ),
        ({"tags": ["a", "b"]}, {("f:tags", 'v:"a"'), ("f:tags", 'v:"b"')}),
        ({"labels": {"k/x": "1"}}, {("f:labels", "f:k/x")}),
        ({"words": ["a", "b"]}, {("f:words",)}),
        ({"fixed": {"a": "1"}}, {("f:fixed",)}),
        (
            {"free": {"any": {"list": [1, 2]}}},
            {("f:free", "f:any"), ("f:free", "f:any", "f:list")},
        ),
        # A key that is left out is its default.
        (
            {"ports": [{"port": 80}]},
            {
                ("f:ports", 'k:{"port":80,"protocol":"TCP"}'),
                ("f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:port"),
            },
        ),
    ],
)
def test_what_a_value_states(value: dict[str, Any], paths: set[tuple[str, ...]]) -> None:
    """Leaves, elements, keys."""
    assert field_set(WHOLE, value) == paths


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"inner": {"z": 1}}, ".inner.z: field not declared in schema"),
        ({"items": [{"name": "a"}, {"name": "a"}]}, '.items: duplicate entries for key [name="a"]'),
        ({"items": [{"value": "1"}]}, '.items: associative list with keys has an element that omits key field "name"'),
        ({"items": ["a"]}, ".items: associative list with keys may not have non-map elements"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_type(value: dict[str, Any], words: str) -> None:
    """Named by path."""
    with pytest.raises(NotOfType, match="^" + words.replace("[", r"\[").replace("(", r"\(")):
        field_set(WHOLE, value)


@pytest.mark.parametrize(
    ("old", "new", "added", "removed", "modified"),
    [
        ({"text": "x"}, {"text": "x"}, set(), set(), set()),
        ({"text": "x"}, {"text": "y"}, set(), set(), {("f:text",)}),
        ({}, {"text": "x"}, {("f:text",)}, set(), set()),
        ({"text": "x"}, {}, set(), {("f:text",)}, set()),
        # A new container counts itself and what is in it.
        ({}, {"inner": {"a": 1}}, {("f:inner",), ("f:inner", "f:a")}, set(), set()),
        ({"inner": {"a": 1}}, {"inner": {"b": 1}}, {("f:inner", "f:b")}, {("f:inner", "f:a")}, set()),
        # Order is no difference where elements have keys, and is one where they have none.
        ({"items": [{"name": "a"}, {"name": "b"}]}, {"items": [{"name": "b"}, {"name": "a"}]}, set(), set(), set()),
        ({"words": ["a", "b"]}, {"words": ["b", "a"]}, set(), set(), {("f:words",)}),
        (
            {"items": [{"name": "a", "value": "1"}]},
            {"items": [{"name": "a", "value": "2"}]},
            set(), set(), {("f:items", 'k:{"name":"a"}', "f:value")},
        ),
        ({"tags": ["a"]}, {"tags": ["a", "b"]}, {("f:tags", 'v:"b"')}, set(), set()),
        ({"fixed": {"a": "1"}}, {"fixed": {"a": "1", "b": "2"}}, set(), set(), {("f:fixed",)}),
    ],
)  # fmt: skip
def test_how_two_values_differ(
    old: dict[str, Any], new: dict[str, Any], added: set[Any], removed: set[Any], modified: set[Any]
) -> None:
    """Added, removed, modified."""
    changes = compare(WHOLE, old, new)
    assert (changes.added, changes.removed, changes.modified) == (added, removed, modified)


def test_parents_are_declared_fields_only() -> None:
    """An element of a list is no parent that comes along: it has an owner of its own."""
    path = ("f:items", 'k:{"name":"a"}', "f:more", "f:x")
    assert with_parents(WHOLE, [path]) == {path, path[:1], path[:3]}
    assert with_parents(WHOLE, [("f:labels", "f:a")]) == {("f:labels", "f:a"), ("f:labels",)}


def test_the_written_form_is_nested_and_comes_back() -> None:
    """A dot is a container that is a member itself."""
    paths = {
        ("f:a",),
        ("f:b",),
        ("f:b", "f:c"),
        ("f:d", 'k:{"name":"x"}'),
        ("f:d", 'k:{"name":"x"}', "f:name"),
    }
    tree = to_v1(paths)
    assert tree == {
        "f:a": {},
        "f:b": {".": {}, "f:c": {}},
        "f:d": {'k:{"name":"x"}': {".": {}, "f:name": {}}},
    }
    assert set(from_v1(tree)) == paths


def test_paths_are_read_by_people() -> None:
    """As in a conflict."""
    assert path_text(("f:spec", "f:items", 'k:{"name":"a"}', "f:value")) == '.spec.items[name="a"].value'
    assert path_text(("f:ports", 'k:{"port":80,"protocol":"TCP"}')) == '.ports[port=80,protocol="TCP"]'
    assert path_text(("f:tags", 'v:"x"')) == '.tags[="x"]'
