"""Patches, with the examples of RFC 6902 and 7386 where they have one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.patches import json_patched, merge_patched, strategic_patched
from tests.fakes.kube.shapes import Shape


@pytest.mark.parametrize(
    ("value", "patch", "result"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches(value: Any, patch: Any, result: Any) -> None:
    """null takes away, objects are joined."""
    assert merge_patched(value, patch) == result


@pytest.mark.parametrize(
    ("value", "operations", "result"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "q"}], {"foo": "bar", "baz": "q"}),
        ({"foo": ["b", "z"]}, [{"op": "add", "path": "/foo/1", "value": "q"}], {"foo": ["b", "q", "z"]}),
        ({"foo": ["b"]}, [{"op": "add", "path": "/foo/-", "value": "z"}], {"foo": ["b", "z"]}),
        ({"baz": "q", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": ["b", "q", "z"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["b", "z"]}),
        ({"foo": ["b", "z"]}, [{"op": "replace", "path": "/foo/1", "value": "q"}], {"foo": ["b", "q"]}),
        (
            {"foo": {"bar": "b", "w": "f"}, "qux": {"c": "g"}},
            [{"op": "move", "from": "/foo/w", "path": "/qux/t"}],
            {"foo": {"bar": "b"}, "qux": {"c": "g", "t": "f"}},
        ),
        ({"foo": ["a", "b", "c"]}, [{"op": "move", "from": "/foo/0", "path": "/foo/2"}], {"foo": ["b", "c", "a"]}),
        ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
        ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
    ],
)  # fmt: skip
def test_json_patches(value: Any, operations: list[dict[str, Any]], result: Any) -> None:
    """In order; the value they begin with is left as it is."""
    before = repr(value)
    assert json_patched(value, operations) == result
    assert repr(value) == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/none"},
        {"op": "replace", "path": "/none", "value": 1},
        {"op": "add", "path": "/none/below", "value": 1},
        {"op": "add", "path": "/list/5", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "jump", "path": "/a"},
        {"op": "add", "path": "a", "value": 1},
    ],
)
def test_what_cannot_be_carried_out_is_refused(operation: dict[str, Any]) -> None:
    """422."""
    with pytest.raises(ApiError) as refused:
        json_patched({"a": 1, "list": []}, [operation])
    assert refused.value.code == 422


_LIST = {"type": "array", "x-kubernetes-patch-strategy": "merge"}
TYPE = Shape({
    "properties": {
        "keyed": _LIST | {"x-kubernetes-patch-merge-key": "name", "items": {"properties": {"inner": {}}}},
        "plain": _LIST,
        "atomic": {"type": "array"},
        "volumes": _LIST | {"x-kubernetes-patch-merge-key": "name"},
    }
})  # fmt: skip


@pytest.mark.parametrize(
    ("value", "patch", "result"),
    [
        (
            {"keyed": [{"name": "a", "x": 1}, {"name": "b"}]},
            {"keyed": [{"name": "a", "y": 2}, {"name": "c"}]},
            {"keyed": [{"name": "a", "x": 1, "y": 2}, {"name": "b"}, {"name": "c"}]},
        ),
        ({"keyed": [{"name": "a"}, {"name": "b"}]}, {"keyed": [{"name": "a", "$patch": "delete"}]},
         {"keyed": [{"name": "b"}]}),
        ({"keyed": [{"name": "a"}]}, {"keyed": [{"$patch": "replace"}, {"name": "b"}]}, {"keyed": [{"name": "b"}]}),
        (
            {"keyed": [{"name": "a"}, {"name": "b"}]},
            {"keyed": [{"name": "c"}], "$setElementOrder/keyed": [{"name": "c"}, {"name": "b"}, {"name": "a"}]},
            {"keyed": [{"name": "c"}, {"name": "b"}, {"name": "a"}]},
        ),
        ({"plain": ["a"]}, {"plain": ["a", "b"]}, {"plain": ["a", "b"]}),
        ({"plain": ["a", "b"]}, {"$deleteFromPrimitiveList/plain": ["a"]}, {"plain": ["b"]}),
        ({"atomic": [1, 2]}, {"atomic": [3]}, {"atomic": [3]}),
        ({"o": {"a": 1, "b": 2}}, {"o": {"$patch": "replace", "c": 3}}, {"o": {"c": 3}}),
        ({"o": {"a": 1, "b": 2}}, {"o": {"$retainKeys": ["a"], "a": 4}}, {"o": {"a": 4}}),
        ({"o": {"a": 1}}, {"o": None}, {}),
        ({"o": {"a": 1}}, {"o": {"$patch": "delete"}}, {}),
    ],
)  # fmt: skip
def test_strategic_patches(value: Any, patch: Any, result: Any) -> None:
    """Lists with a merge key are joined by it; `$` directives are obeyed."""
    assert strategic_patched(TYPE, value, patch) == result


def test_an_element_without_its_merge_key_is_refused() -> None:
    """400."""
    with pytest.raises(ApiError, match="does not contain declared merge key: name"):
        strategic_patched(TYPE, {"keyed": []}, {"keyed": [{"x": 1}]})
