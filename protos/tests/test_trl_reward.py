"""TRL's contract of a reward function."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
from typing import Any

import pytest

from trimtab.clients.reward import RowError
from trimtab.trl import async_reward, reward

PROMPTS = ["How are you?", "And you?"]


def call(make: Any, target: str, *, prompts: Any = PROMPTS, completions: Any, **given: Any) -> Any:
    """As TRL calls it, with what it hands over beside columns. `make`: (function, its options)."""
    function, options = make
    machinery = {
        "completion_ids": [[1]] * len(completions),
        "trainer_state": object(),
        "log_extra": print,
        "log_metric": print,
    }
    made = function(target, **options)(prompts=prompts, completions=completions, **machinery, **given)
    return asyncio.run(made) if inspect.isawaitable(made) else made


twins = pytest.mark.parametrize("function", [reward, async_reward])


@twins
def test_plain_text(function: Any, fake: Any) -> None:
    """Strings are scored as prompt and completion; TRL's own machinery does not travel."""
    assert call((function, {"model": "hh"}), fake.target, completions=["one", "three"]) == [3.0, 5.0]
    [request] = fake.requests
    assert (request.model, request.inputs[1].prompt) == ("hh", "And you?")
    assert not request.inputs[0].columns


@twins
def test_conversations(function: Any, fake: Any) -> None:
    """Lists of messages become one conversation."""
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    completions = [[{"role": "assistant", "content": text}] for text in ("one", "three")]
    assert call((function, {}), fake.target, prompts=prompts, completions=completions) == [3.0, 5.0]
    assert [each.role for each in fake.requests[0].inputs[0].messages] == ["user", "assistant"]


def test_columns_travel(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Every column that JSON can say goes along, None not; another is named in the log, once."""
    make = (reward, {"model": "hh"})
    columns = {"answer": ["4", None], "steps": [[1, 2], [3]], "image": [object(), object()]}
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        call(make, fake.target, completions=["a", "b"], **columns)
    assert [dict(row.columns) for row in fake.requests[0].inputs] == [
        {"answer": "4", "steps": "[1, 2]"},
        {"steps": "[3]"},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "hh: column image is not sent: a value of type object is no JSON"
    ]


def test_named_columns_alone(fake: Any) -> None:
    """With `columns` only those travel, and one that is not there is an error."""
    call(
        (reward, {"columns": ["answer"]}), fake.target, completions=["a", "b"], answer=["4", "5"], more=[1, 2]
    )
    assert dict(fake.requests[0].inputs[1].columns) == {"answer": "5"}
    with pytest.raises(ValueError, match="no column solution"):
        call((reward, {"columns": ["solution"]}), fake.target, completions=["a", "b"], answer=["4", "5"])


@twins
def test_a_row_without_a_score_raises(function: Any, fake: Any) -> None:
    """By default a row that cannot be scored ends the step with its place and reason."""
    with pytest.raises(RowError, match=r"inputs\[1\]: INVALID_ARGUMENT: a bad answer"):
        call((function, {}), fake.target, completions=["one", "bad"])


@twins
def test_none_on_request(function: Any, fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With on_error="none" such a row has None, and the log says how many and why."""
    make = (function, {"on_error": "none", "name": "judge"})
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        assert call(make, fake.target, completions=["one", "bad"]) == [3.0, None]
    assert "judge: 1 of 2 rows have no reward; inputs[1]: INVALID_ARGUMENT: a bad answer" in caplog.text


@twins
def test_names_and_pickles(function: Any, fake: Any) -> None:
    """TRL's log names it by `name`, else by the model; a pickled copy scores alike."""
    assert function("a:1", model="hh").__name__ == "hh"
    assert function("a:1", model="hh", name="harmless").__name__ == "harmless"
    copy = pickle.loads(pickle.dumps(function(fake.target, model="hh")))  # noqa: S301 - our own
    assert copy.__name__ == "hh"
    assert call((lambda _: copy, {}), fake.target, completions=["one", "three"]) == [3.0, 5.0]


def test_trl_awaits_the_async_one_only() -> None:
    """What TRL asks in order to tell coroutine functions holds for the asynchronous reward alone."""
    assert inspect.iscoroutinefunction(async_reward("a:1"))
    assert not inspect.iscoroutinefunction(reward("a:1"))


def test_rendered_prompts_say_so(fake: Any) -> None:
    """Prompts with a chat template around them are marked, on request, so that the model puts no second one."""
    call((reward, {"rendered": True}), fake.target, completions=["a", "b"])
    call((reward, {}), fake.target, completions=["a", "b"])
    assert [request.inputs[0].rendered for request in fake.requests] == [True, False]


def test_wrong_use_is_told() -> None:
    """An unknown on_error, or lists of different lengths, is an error at once."""
    with pytest.raises(ValueError, match="on_error"):
        reward("a:1", on_error="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a prompt for each of 1"):
        reward("a:1")(["p", "q"], ["c"])
