"""Values against their type: pruning, defaults, what has not changed. Wording: tests/contract/kube."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.schema import defaulted, pruned, violations
from tests.fakes.kube.shapes import Shape, builtin_shape
from tests.unit.fakes.kube.shapes import NUMBER, TEXT, fields, keyed_list

TYPE = Shape(
    fields(
        number=NUMBER | {"minimum": 1, "default": 5},
        maybe=TEXT | {"nullable": True},
        inner=fields(a=NUMBER | {"default": 1}) | {"default": {}},
        given=fields(b=NUMBER | {"default": 2}),
        items=keyed_list("name", name=TEXT, size=NUMBER | {"maximum": 9, "default": 3}),
        words={"type": "array", "items": TEXT | {"maxLength": 3}},
        free={
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {"known": NUMBER},
        },
        either={"x-kubernetes-int-or-string": True},
        real={"type": "number", "exclusiveMinimum": True, "minimum": 0},
    )
)


@pytest.mark.parametrize(
    ("value", "left", "unknown"),
    [
        ({"number": 1, "nummer": 2}, {"number": 1}, ["nummer"]),
        ({"inner": {"a": 1, "z": {"deep": 1}}}, {"inner": {"a": 1}}, ["inner.z"]),
        ({"items": [{"name": "a", "z": 1}]}, {"items": [{"name": "a"}]}, ["items[0].z"]),
        ({"free": {"known": 1, "any": {"z": None}}}, {"free": {"known": 1, "any": {"z": None}}}, []),
        ({"number": None, "maybe": None}, {"maybe": None}, []),
    ],
)
def test_unknown_fields_and_nulls_are_dropped(value: Any, left: Any, unknown: list[str]) -> None:
    """With their paths; a field that may be null keeps it."""
    found: list[str] = []
    assert pruned(TYPE, value, "", found) == left
    assert found == unknown


def test_a_value_that_fits_is_not_copied() -> None:
    """Ten thousand objects come by."""
    value = {"number": 1, "inner": {"a": 2}, "items": [{"name": "a", "size": 1}], "given": {"b": 1}}
    assert pruned(TYPE, value, "", []) is value
    assert defaulted(TYPE, value) is value


def test_defaults_are_filled_in_where_an_object_holds_them() -> None:
    """A default object is filled in too; one that is left out and has none stays out."""
    assert defaulted(TYPE, {"items": [{"name": "a"}], "given": {}}) == {
        "number": 5, "inner": {"a": 1}, "items": [{"name": "a", "size": 3}], "given": {"b": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"number": 0}, [("FieldValueInvalid", "number")]),
        ({"number": True}, [("FieldValueTypeInvalid", "number")]),
        ({"number": 2.0}, []),
        ({"real": 0}, [("FieldValueInvalid", "real")]),
        ({"real": 1}, []),
        ({"either": "1Gi"}, []),
        ({"either": 1.5}, [("FieldValueTypeInvalid", "either")]),
        ({"maybe": None}, []),
        ({"words": ["abc", "abcd"]}, [("FieldValueTooLong", "words[1]")]),
        ({"items": [{"name": "a", "size": 10}]}, [("FieldValueInvalid", "items[0].size")]),
        ({"inner": []}, [("FieldValueTypeInvalid", "inner")]),
    ],
)
def test_breaches_are_found(value: Any, found: list[tuple[str, str]]) -> None:
    """Reason and path of each."""
    assert [(cause.reason, cause.path) for cause in violations(TYPE, value)] == found


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ({"number": 0}, {"number": 0, "words": ["a"]}, []),
        ({"number": 0}, {"number": -1}, ["number"]),
        # An element of a keyed list is known again wherever it stands; one of another list is not.
        (
            {"items": [{"name": "a", "size": 10}]},
            {"items": [{"name": "b", "size": 1}, {"name": "a", "size": 10}]},
            [],
        ),
        ({"items": [{"name": "a", "size": 10}]}, {"items": [{"name": "a", "size": 11}]}, ["items[0].size"]),
        ({"words": ["long1"]}, {"words": ["long1", "a"]}, ["words[0]"]),
        ({"words": ["long1"]}, {"words": ["long1"], "number": 1}, []),
    ],
)
def test_what_has_not_changed_is_not_looked_at_again(old: Any, new: Any, paths: list[str]) -> None:
    """So that a stricter schema locks nobody out."""
    assert [cause.path for cause in violations(TYPE, new, old)] == paths


def test_built_in_types_have_their_own_lists() -> None:
    """Read from Kubernetes' own definitions."""
    pod = builtin_shape("io.k8s.api.core.v1.Pod").field("spec")
    assert pod is not None
    containers, tolerations = pod.field("containers"), pod.field("tolerations")
    assert containers is not None
    assert tolerations is not None
    assert (containers.list_type, containers.keys) == ("map", ("name",))
    assert tolerations.list_type == "atomic"
    ports = containers.items.field("ports")
    assert ports is not None
    assert ports.keys == ("containerPort", "protocol")
    assert ports.key_default("protocol") == "TCP"
