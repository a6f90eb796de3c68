"""Rows of trainers as messages of the contract."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from trimtab.clients.reward import RowError, token_inputs, values_or_raise
from trimtab.clients.rows import column_text, row_columns, score_input, split_inputs
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as reward

USER = {"role": "user", "content": "How are you?"}
FINE = {"role": "assistant", "content": "Fine"}


def pairs(row: reward.ScoreInput) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in row.messages]


def test_text_stays_text() -> None:
    """Prompt and completion as strings travel as they are, with their columns."""
    row = score_input("How are you?", "Fine", {"answer": "4"})
    assert (row.prompt, row.completion, dict(row.columns)) == ("How are you?", "Fine", {"answer": "4"})
    assert not row.messages


@pytest.mark.parametrize(
    ("prompt", "completion"), [([USER], [FINE]), ([USER], "Fine"), ("How are you?", [FINE])]
)
def test_messages_make_a_conversation(prompt: Any, completion: Any) -> None:
    """Where one side is messages the row is one conversation, the answer last."""
    row = score_input(prompt, completion)
    assert pairs(row) == [("user", "How are you?"), ("assistant", "Fine")]
    assert not row.prompt and not row.completion


def test_an_empty_answer_is_an_answer() -> None:
    """An empty completion is kept as the assistant's turn; an empty prompt is no turn."""
    assert pairs(score_input([USER], "")) == [("user", "How are you?"), ("assistant", "")]
    assert pairs(score_input("", [FINE])) == [("assistant", "Fine")]
    assert pairs(score_input("", "")) == [("assistant", "")]


def test_an_answer_cut_off_behind_a_tools_result_is_empty() -> None:
    """TRL hands such an answer over with the tool's message last; the score is of the turn that never came."""
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    row = score_input([USER], [calls, {"role": "tool", "content": "4"}])
    assert pairs(row)[-2:] == [("tool", "4"), ("assistant", "")]


def test_parts_and_tool_calls_become_text() -> None:
    """Text parts are joined, tool calls follow as JSON, and None, as data sets fill gaps, is nothing."""
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    plain = {"role": "assistant", "content": "2", "tool_calls": None}
    assert pairs(score_input([parts], [calls, plain])) == [
        ("user", "ab"),
        ("assistant", '[{"name": "add"}]'),
        ("assistant", "2"),
    ]


def test_an_image_is_refused() -> None:
    """Content that cannot be scored is an error, not left out."""
    picture = {"role": "user", "content": [{"type": "image", "image": object()}]}
    with pytest.raises(ValueError, match="content of type image"):
        score_input([picture], [FINE])


class Array:
    """As numpy and torch have it."""

    def tolist(self) -> list[float]:
        return [0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (42, "42"),
        (0.1, "0.1"),
        (True, "true"),
        (["a", 1], '["a", 1]'),
        ({"ü": None}, '{"ü": null}'),
        (Array(), "[0.5, 1.0]"),
        (dt.date(2020, 2, 29), '"2020-02-29"'),
    ],
)
def test_columns_as_text(value: Any, text: str) -> None:
    """A string travels as it is, anything else as JSON."""
    assert column_text(value) == text


def test_columns_without_a_value() -> None:
    """None is left out, and what JSON cannot say is a TypeError that names the type."""
    assert row_columns({"a": None, "b": 0}) == {"b": "0"}
    with pytest.raises(TypeError, match="object is no JSON"):
        column_text(object())


def test_splitting_keeps_order_and_limits() -> None:
    """Parts hold at most so many rows and bytes; a row above the limit goes alone."""
    rows = [reward.ScoreInput(completion="x" * size) for size in (10, 10, 10, 500, 10)]
    by_rows = split_inputs(rows, max_rows=2, max_bytes=10_000)
    assert [len(part) for part in by_rows] == [2, 2, 1]
    by_bytes = split_inputs(rows, max_rows=9, max_bytes=100)
    assert [[len(row.completion) for row in part] for part in by_bytes] == [[10, 10, 10], [500], [10]]
    assert split_inputs([], max_rows=1, max_bytes=1) == []


def test_ids_are_int32() -> None:
    """Pairs of ids become tensors of their lengths."""
    [row] = token_inputs([([1, 2, 3], [4])])
    assert row.prompt_ids.dtype == common.DTYPE_INT32
    assert (list(row.prompt_ids.shape), list(row.completion_ids.shape)) == ([3], [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_no_score(value: float) -> None:
    """A value that is not finite is an error of its row, whoever sent it."""
    with pytest.raises(RowError, match=r"inputs\[1\]: DATA_LOSS"):
        values_or_raise([common.Score(value=1.0), common.Score(value=value)])
