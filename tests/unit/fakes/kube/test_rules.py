"""CEL rules: where they are asked, of what, and when not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.kube.rules import broken_rules, uncompiled
from tests.fakes.kube.schema import ABSENT
from tests.fakes.kube.shapes import Shape
from tests.unit.fakes.kube.shapes import NUMBER, TEXT, fields, keyed_list


def ruled(schema: dict[str, Any], *rules: dict[str, Any]) -> dict[str, Any]:
    """A schema with rules."""
    return schema | {"x-kubernetes-validations": list(rules)}


TYPE = Shape(
    ruled(
        fields(
            low=NUMBER,
            high=NUMBER,
            share=ruled({"type": "number"}, {"rule": "self < 1.0", "message": "below one"}),
            once=ruled(TEXT, {"rule": "self == oldSelf", "message": "for ever"}),
            grows=ruled(
                NUMBER,
                {
                    "rule": "!oldSelf.hasValue() || self >= oldSelf.value()",
                    "optionalOldSelf": True,
                    "messageExpression": "'not below ' + string(oldSelf.value())",
                },
            ),
            items=keyed_list(
                "name", name=TEXT, value=ruled(TEXT, {"rule": "self == oldSelf", "message": "fixed"})
            ),
            words={
                "type": "array",
                "items": ruled(TEXT, {"rule": "self != ''", "message": "no empty word"}),
            },
        ),
        {
            "rule": "!has(self.high) || self.low <= self.high",
            "message": "low is at most high",
            "fieldPath": ".low",
        },
    )
)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (ABSENT, {"low": 1, "high": 2}, []),
        (ABSENT, {"low": 3, "high": 2}, [("low", 'Invalid value: "object": low is at most high')]),
        (ABSENT, {"low": 3}, []),
        # JSON has no doubles: the type says so.
        (ABSENT, {"low": 1, "share": 1}, [("share", 'Invalid value: "number": below one')]),
        (ABSENT, {"low": 1, "once": "x"}, []),
        ({"low": 1}, {"low": 1, "once": "x"}, []),
        ({"low": 1, "once": "x"}, {"low": 1, "once": "y"}, [("once", 'Invalid value: "string": for ever')]),
        (ABSENT, {"low": 1, "grows": 1}, []),
        ({"low": 1, "grows": 2}, {"low": 1, "grows": 1}, [("grows", 'Invalid value: "integer": not below 2')]),
        (
            {"low": 1, "items": [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]},
            {"low": 1, "items": [{"name": "b", "value": "3"}, {"name": "c", "value": "1"}]},
            [("items[0].value", 'Invalid value: "string": fixed')],
        ),
        (ABSENT, {"low": 1, "words": ["a", ""]}, [("words[1]", 'Invalid value: "string": no empty word')]),
        # What broke a rule before and has not changed is left alone.
        ({"low": 3, "high": 2}, {"low": 3, "high": 2}, []),
        (ABSENT, {"high": 2}, [("low", 'Invalid value: "object": rule evaluation error: \'low\'')]),
    ],
)  # fmt: skip
def test_rules(old: Any, new: Any, found: list[tuple[str, str]]) -> None:
    """Path and message of each that does not hold."""
    assert [(cause.path, cause.message) for cause in broken_rules(TYPE, new, old)] == found


def test_a_rule_that_cannot_be_compiled_is_told_when_the_kind_is_made() -> None:
    """Not when the first object comes."""
    broken = Shape(fields(a=ruled(NUMBER, {"rule": "self >", "message": "m"})))
    assert [cause.reason for cause in uncompiled(broken, "schema")] == ["FieldValueInvalid"]
    assert list(uncompiled(TYPE, "schema")) == []
