"""The json rule: what is JSON, what fits a schema, and what a row cannot do to it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from services.common.errors import InvalidInput
from services.common.rules import make_rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, 2.5, null, true, "x"]}', 1.0),
        (" [] \n", 1.0),
        ('"["', 1.0),
        ("1" * 10_000, 1.0),
        ('{"a": 1,}', 0.0),
        ("{'a': 1}", 0.0),
        ("NaN", 0.0),
        ("[1", 0.0),
        ("", 0.0),
        ("Here it is: {}", 0.0),
        ('"' + "[" * 1000 + '"', 1.0),
        ("[" * 100 + "]" * 100, 1.0),
    ],
)
def test_json_is_what_the_rfc_says(text: str, expected: float) -> None:
    """1 for one JSON value with white space around it, else 0."""
    assert make_rule("json").score("", text, {}) == expected


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 30_000, '[{"a":' * 60])
def test_deep_nesting_is_an_error_and_not_a_zero(text: str) -> None:
    """More than 100 levels is InvalidInput: no recursion takes place."""
    with pytest.raises(InvalidInput, match="100 levels"):
        make_rule("json").score("", text, {})


@pytest.mark.parametrize("text", ['"\\' * 60_000, '"' * 200_000, '"\\\\' * 60_000 + "\\", "[1,1.0]" * 20_000])
def test_hostile_text_ends_soon(text: str) -> None:
    """Quotes and backslashes without end are gone through once."""
    began = time.monotonic()
    assert make_rule("json").score("", text, {}) == 0.0
    assert time.monotonic() - began < 10


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema, with a comma.json"
    path.write_text(
        json.dumps(
            {
                "type": "object",
                "required": ["score"],
                "properties": {
                    "score": {"type": "integer", "multipleOf": 0.5},
                    "code": {"pattern": "^(a|aa)+$"},
                    "list": {"uniqueItems": True},
                },
                "patternProperties": {"^(x|xx)+$": {"type": "string"}},
                "additionalProperties": False,
            }
        )
    )
    return f"json:schema={path}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 3}', 1.0),
        ('{"score": 3.0}', 1.0),  # an integer in JSON Schema
        ('{"score": "3"}', 0.0),
        ("{}", 0.0),
        ("3", 0.0),
        ("no JSON", 0.0),
        ('{"score": 3, "code": "aaa"}', 1.0),
        ('{"score": 3, "code": "ab"}', 0.0),
        ('{"score": 3, "code": 1}', 1.0),
        ('{"score": 3, "xxx": "s"}', 1.0),
        ('{"score": 3, "xxx": 1}', 0.0),
        ('{"score": 3, "other": 1}', 0.0),
        ('{"score": 3, "list": [1, true, "1", [1]]}', 1.0),
        ('{"score": 3, "list": [1, 1.0]}', 0.0),
        ('{"score": 3, "list": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}', 0.0),
    ],
)
def test_a_schema_decides(schema: str, text: str, expected: float) -> None:
    """1 where the value is valid against the schema of the file, else 0."""
    assert make_rule(schema).score("", text, {}) == expected


@pytest.mark.parametrize("name", ["code", "x" * 5000 + "!"])
def test_a_row_cannot_make_a_pattern_exponential(schema: str, name: str) -> None:
    """A pattern of the schema that would take ages on this row is an error after a second."""
    with pytest.raises(InvalidInput, match="still searching"):
        make_rule(schema).score("", json.dumps({"score": 1, name: "a" * 5000 + "!"}), {})


def test_many_items_are_compared_once_each(schema: str) -> None:
    """uniqueItems over thousands of objects, which cannot be sorted, is not quadratic."""
    items = [{"a": number} for number in range(12_000)]
    began = time.monotonic()
    assert make_rule(schema).score("", json.dumps({"score": 1, "list": items}), {}) == 1.0
    assert time.monotonic() - began < 10


def test_a_number_that_no_schema_can_divide_is_an_error(tmp_path: Path) -> None:
    """1e400 is JSON, but no float: the row has an error."""
    path = tmp_path / "s.json"
    path.write_text('{"multipleOf": 0.5}')
    with pytest.raises(InvalidInput, match="cannot be tried"):
        make_rule(f"json:schema={path}").score("", "1e400", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON schema"),
        ('{"type": "number of things"}', "is no JSON schema"),
        ('{"patternProperties": {"a": {}}, "unevaluatedProperties": false}', "cannot be bounded"),
    ],
)
def test_a_wrong_schema_is_told_at_once(tmp_path: Path, content: str, says: str) -> None:
    """What is no schema, or one that a row could make exponential, is refused in one line."""
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=says) as caught:
        make_rule(f"json:schema={path}")
    assert "\n" not in str(caught.value)


def test_references_are_never_fetched(tmp_path: Path) -> None:
    """A "$ref" to a URL is an error of the row; nothing is asked for over the network."""
    path = tmp_path / "s.json"
    path.write_text('{"$ref": "http://127.0.0.1:9/schema.json"}')
    with pytest.raises(InvalidInput, match="cannot be tried"):
        make_rule(f"json:schema={path}").score("", "{}", {})


def test_the_digest_is_of_the_schema_and_not_of_its_place(tmp_path: Path) -> None:
    """Two files of one content have one digest; another content has another."""
    for name, content in (("a", "{}"), ("b", "{ }"), ("c", '{"type": "object"}')):
        (tmp_path / name).write_text(content)
    digests = [make_rule(f"json:schema={tmp_path / name}").digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
