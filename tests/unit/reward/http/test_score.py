"""POST /v1/score and the listing of models."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from services.common.errors import Corrupted, InvalidInput, ServiceError
from services.reward.http.shapes import MAX_VALUES
from services.reward.rewards.base import ScoreOutcome, ScoreRow, TokenIds
from tests.unit.reward.http.served import FINGERPRINT, Recorder, error_of, served


async def test_text_messages_and_ids_arrive_as_rows() -> None:
    """Each way of writing an input becomes the row that gRPC makes of it, columns and tokenizer with it."""
    source = Recorder()
    inputs: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "abc", "columns": {"label": "7"}},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "ab"}]},
        {"prompt_ids": [1, 2], "completion_ids": [3]},
        {"completion": "alone"},
    ]
    async with served({"hh": source}) as around:
        request = {"model": "hh", "inputs": inputs, "tokenizer_fingerprint": FINGERPRINT}
        response = await around.client.post("/v1/score", json=request)
    assert response.status_code == 200, response.text
    assert source.rows == [
        ScoreRow(messages=(("user", "p"),), completion="abc", columns={"label": "7"}),
        ScoreRow(messages=(("user", "u"),), completion="ab"),
        ScoreRow(
            messages=(), completion="", ids=TokenIds(prompt=(1, 2), completion=(3,), fingerprint=FINGERPRINT)
        ),
        ScoreRow(messages=(), completion="alone"),
    ]
    scores = response.json()["scores"]
    assert [score["value"] for score in scores] == [3.0, 2.0, 0.0, 5.0]
    assert scores[0] == {
        "value": 3.0,
        "components": {},
        "steps": [],
        "model": "hh",
        "model_digest": "d1",
        "truncated_tokens": 0,
    }
    assert response.headers["x-trimtab-model"] == "hh"
    assert response.headers["x-trimtab-model-digest"] == "d1"


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-300, 5e-324, 1.7976931348623157e308, 1e16, -0.0, 3.0])
async def test_numbers_are_exact(value: float) -> None:
    """A score reads back as the very same double."""
    outcome = ScoreOutcome(value=value, components={"a": value}, steps=(value,))
    async with served({"hh": Recorder([outcome])}) as around:
        response = await around.client.post("/v1/score", json={"inputs": [{"completion": "x"}]})
    [score] = json.loads(response.content)["scores"]
    for read in (score["value"], score["components"]["a"], score["steps"][0]):
        assert read == value and math.copysign(1, read) == math.copysign(1, value)


async def test_rows_without_a_score_have_errors_in_their_place() -> None:
    """An unreadable row, a failing one and one that is no number: errors with codes, no value; the rest is scored."""
    outcomes = [
        ScoreOutcome(value=1.5, truncated_tokens=3, components={"a": 2.0}, steps=(0.5, 1.0)),
        ScoreOutcome(error=ServiceError("the function raised")),
        ScoreOutcome(value=math.nan),
        ScoreOutcome(value=1.0, components={"a": math.inf}),
    ]
    rows = [
        {"completion": "a"},
        {},
        {"completion": "b"},
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"completion": "c"},
        {"completion_ids": [1]},
        {"completion": "d"},
        {"completion": "x" * 1001},
    ]
    async with served({"hh": Recorder(outcomes)}) as around:
        response = await around.client.post("/v1/score", json={"inputs": rows})
    scores = response.json()["scores"]
    assert [score.get("error", {}).get("code") for score in scores] == [
        None,
        "INVALID_ARGUMENT",
        "INTERNAL",
        "INVALID_ARGUMENT",
        "DATA_LOSS",
        "FAILED_PRECONDITION",
        "DATA_LOSS",
        "INVALID_ARGUMENT",
    ]
    assert all(("value" in score) != ("error" in score) for score in scores)
    assert scores[0]["components"] == {"a": 2.0}
    assert (scores[0]["steps"], scores[0]["truncated_tokens"]) == ([0.5, 1.0], 3)
    assert "inputs[3]: the last message is of role user" in scores[3]["error"]["message"]
    assert "NaN" not in response.text and "null" not in response.text


async def test_a_call_of_which_nothing_can_be_read_fails() -> None:
    """Only then does the call itself have an error, with the first row's code."""
    async with served({"hh": Recorder()}) as around:
        response = await around.client.post("/v1/score", json={"inputs": [{}, {"prompt": ""}]})
        error = error_of(response, 400, "INVALID_ARGUMENT")
        assert error["message"].startswith("inputs[0]: the input is empty")


async def test_errors_of_the_whole_call_have_their_status() -> None:
    """Unknown models, several without a name, another tokenizer, too many rows, and what a source refuses."""
    async with served({"a": Recorder(), "b": Recorder(kind="rule")}) as around:
        ask = around.client.post
        rows = [{"completion": "x"}]
        response = await ask("/v1/score", json={"model": "z", "inputs": rows})
        assert "there are a, b" in error_of(response, 404, "NOT_FOUND")["message"]
        error_of(await ask("/v1/score", json={"inputs": rows}), 400, "INVALID_ARGUMENT")
        wrong = {"model": "a", "inputs": rows, "tokenizer_fingerprint": "other"}
        error_of(await ask("/v1/score", json=wrong), 400, "FAILED_PRECONDITION")
        response = await ask("/v1/score", json={"model": "a", "inputs": rows * 9})
        assert error_of(response, 400, "INVALID_ARGUMENT")["violations"] == {
            "inputs": "expected at most 8, got 9"
        }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({}, "inputs"),
        ({"inputs": [{"completion": 5}]}, "inputs[0].completion"),
        ({"inputs": [{"completion": None}]}, "inputs[0].completion"),
        ({"inputs": [{"prompt": "a", "answer": "b"}]}, "inputs[0].answer"),
        ({"inputs": [{"completion_ids": [1, -1]}]}, "inputs[0].completion_ids[1]"),
        ({"inputs": [{"completion_ids": [2**31]}]}, "inputs[0].completion_ids[0]"),
        ({"inputs": [{"completion_ids": [True]}]}, "inputs[0].completion_ids[0]"),
        ({"inputs": [{"completion_ids": ["1"]}]}, "inputs[0].completion_ids[0]"),
        ({"inputs": [{"columns": {"a": 1}}]}, "inputs[0].columns.a"),
        ({"inputs": [{"messages": [{"role": "", "content": ""}]}]}, "inputs[0].messages[0].role"),
        ({"inputs": [{"completion": "a"}], "modle": "hh"}, "modle"),
        ([], "body"),
        ("text", "body"),
    ],
)
async def test_violations_name_the_field(body: object, field: str) -> None:
    """A body of the wrong form is INVALID_ARGUMENT with the path of what is wrong."""
    async with served({"hh": Recorder()}) as around:
        error = error_of(await around.client.post("/v1/score", json=body), 400, "INVALID_ARGUMENT")
    assert field in error["violations"]
    assert error["message"].startswith(f"{field}: ")


async def test_many_violations_are_bounded() -> None:
    """A body that is wrong in thousands of places gets a short answer."""
    async with served({"hh": Recorder()}) as around:
        body = {"inputs": [{"completion": 1}] * 5000}
        response = await around.client.post("/v1/score", json=body)
    assert len(error_of(response, 400, "INVALID_ARGUMENT")["violations"]) <= 32
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"inputs": [1] * 5000}),
        ("/v1/score", {"inputs": [{"completion_ids": ["1"] * 5000}]}),
        ("/v1/score", {"inputs": [{"prompt_ids": [1.5] * 5000}]}),
        ("/v1/score", {"inputs": [{"messages": [1] * 4000}]}),
        ("/classify", {"input": ["a"] * 5000 + [1]}),
        ("/classify", {"input": [1.5] * 5000}),
        ("/pooling", {"input": [["1"] * 5000] * 2}),
        ("/pooling", {"messages": [{"role": "user", "content": [1] * 4000}]}),
        ("/get_reward", {"query": [1] * 5000}),
        ("/predict", {"inputs": [[1, 2]] * 5000}),
        ("/slime", {"prompt": [1] * 4000, "response": "a"}),
    ],
)
async def test_a_list_is_read_to_its_first_error(path: str, body: dict[str, Any]) -> None:
    """However many elements are of the wrong type, there is one error for each form that the list might have had."""
    async with served({"hh": Recorder()}) as around:
        error = error_of(await around.client.post(path, json=body), 400, "INVALID_ARGUMENT")
    more = re.search(r"and (\d+) more", error["message"])
    assert int(more[1]) < 8 if more else len(error["violations"]) == 1


async def test_a_list_longer_than_any_limit_is_not_read_to_its_end() -> None:
    """The violation names the list, not a hundred thousand rows."""
    async with served({"hh": Recorder()}) as around:
        body = b'{"inputs": [' + b"{}," * 99_999 + b"{}]}"
        headers = {"content-type": "application/json"}
        response = await around.client.post("/v1/score", content=body, headers=headers)
    assert list(error_of(response, 400, "INVALID_ARGUMENT")["violations"]) == ["inputs"]


async def test_a_body_of_millions_of_values_is_refused_unparsed() -> None:
    """413 by the number of values; as many commas within a text are no values."""
    texts = 'a,\\",\\\\' * 1_100_000
    async with served({"hh": Recorder()}, characters=10**8) as around:
        headers = {"content-type": "application/json"}
        body = b'{"inputs": [{"completion_ids": [' + b"1," * MAX_VALUES + b"1,1]}]}"
        response = await around.client.post("/v1/score", content=body, headers=headers)
        assert "send it in several requests" in error_of(response, 413, "RESOURCE_EXHAUSTED")["message"]
        response = await around.client.post("/v1/score", json={"inputs": [{"completion": texts}]})
        assert response.json()["scores"][0]["value"] == len(texts)


async def test_a_text_that_never_ends_is_counted_like_any_other() -> None:
    """A body whose last text is a hundred thousand escaped quotes is refused as others are, not searched for hours."""
    body = b'{"inputs": [' + b"0," * MAX_VALUES + b'0,"' + b'\\"' * 100_000
    async with served({"hh": Recorder()}, characters=10**8) as around:
        response = await around.client.post(
            "/v1/score", content=body, headers={"content-type": "application/json"}
        )
    error_of(response, 413, "RESOURCE_EXHAUSTED")


async def test_models_are_listed_for_us_and_for_openai_clients() -> None:
    """Every model by name, with what identifies it; `data` holds the same names."""
    async with served({"b": Recorder(kind="rule", digest="d2"), "a": Recorder()}) as around:
        body = (await around.client.get("/v1/models")).json()
    assert [one["name"] for one in body["models"]] == ["a", "b"] == [one["id"] for one in body["data"]]
    assert body["object"] == "list"
    first, second = body["models"]
    assert (first["kind"], first["digest"], first["tokenizer_fingerprint"]) == ("model", "d1", FINGERPRINT)
    assert (first["input"], first["truncates"], first["max_tokens"]) == ("messages", "left", 96)
    assert (second["kind"], second["digest"], second["tokenizer_fingerprint"]) == ("rule", "d2", "")


async def test_what_a_source_raises_is_the_calls_error() -> None:
    """An error that the source gives for the whole batch keeps its code."""
    for refuses, status, code in (
        (InvalidInput("no such column", {"columns": "a label"}), 400, "INVALID_ARGUMENT"),
        (Corrupted("weights"), 500, "DATA_LOSS"),
    ):
        async with served({"hh": Recorder(refuses=refuses)}) as around:
            response = await around.client.post("/v1/score", json={"inputs": [{"completion": "x"}]})
            error_of(response, status, code)
