"""Selectors: as texts and as LabelSelector objects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.selectors import (
    fields_match,
    labels_match,
    parse_fields,
    parse_labels,
    selector_requirements,
    selector_text,
)


def labelled(**labels: str) -> dict[str, Any]:
    return {"metadata": {"labels": labels}}


@pytest.mark.parametrize(
    ("text", "matches", "differs"),
    [
        ("", labelled(), None),
        ("a=1", labelled(a="1"), labelled(a="2")),
        ("a = 1 , b==2", labelled(a="1", b="2"), labelled(a="1")),
        ("a!=1", labelled(), labelled(a="1")),
        ("a in (1, 2)", labelled(a="2"), labelled(a="3")),
        ("a notin (1,2),b", labelled(b=""), labelled(a="1", b="")),
        ("!a", labelled(b="1"), labelled(a="")),
        ("app.kubernetes.io/name=x", {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}, labelled()),
        ("a=", labelled(a=""), labelled()),
    ],
)
def test_labels(text: str, matches: dict[str, Any], differs: dict[str, Any] | None) -> None:
    """All terms must hold; an absent label is none of any values."""
    requirements = parse_labels(text)
    assert labels_match(requirements, matches)
    assert differs is None or not labels_match(requirements, differs)


@pytest.mark.parametrize("text", ["a in 1", "a b", "=x", "a in (1"])
def test_what_is_no_selector(text: str) -> None:
    """400."""
    with pytest.raises(ApiError):
        parse_labels(text)


def test_fields() -> None:
    """A field that is not there is empty; booleans are words."""
    known = frozenset(("status.phase", "spec.nodeName", "spec.unschedulable", "source"))
    pod = {"status": {"phase": "Running"}, "spec": {"unschedulable": True}, "source": {"component": "x"}}
    assert fields_match(parse_fields("status.phase=Running,spec.nodeName=", known), pod)
    assert fields_match(parse_fields("spec.unschedulable=true,source=x", known), pod)
    assert not fields_match(parse_fields("status.phase!=Running", known), pod)
    with pytest.raises(ApiError, match="field label not supported"):
        parse_fields("spec.other=1", known)


def test_a_label_selector_and_its_text_are_the_same() -> None:
    """As a Scale carries it."""
    selector = {
        "matchLabels": {"a": "1"},
        "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["2", "1"]},
            {"key": "c", "operator": "DoesNotExist"},
        ],
    }
    text = selector_text(selector)
    assert text == "a=1,b in (1,2),!c"
    assert parse_labels(text) == selector_requirements(selector)
