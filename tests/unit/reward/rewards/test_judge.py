"""A generative judge behind a real HTTP server: what is asked, what counts as a rating, what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from services.common.errors import (
    Expired,
    InvalidInput,
    Mismatch,
    ServiceError,
    TrimtabError,
    Unavailable,
)
from services.reward.config import JudgeSpec
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, TokenIds
from services.reward.rewards.judge import JudgeReward, Template
from tests.fakes.http_server import HttpServer, Reply, Request, in_turn

Opener = Callable[..., JudgeReward]


def says(content: Any, finish: str = "stop") -> Reply:
    return Reply(
        {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]}
    )


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(in_turn(says("7"))) as started:
        yield started


@pytest.fixture
def opened(server: HttpServer) -> Iterator[Opener]:
    sources: list[JudgeReward] = []

    def open_judge(**fields: Any) -> JudgeReward:
        spec = {"url": f"{server.url}/v1", "model": "judge-7b", "timeout_seconds": 20, **fields}
        sources.append(JudgeReward(JudgeSpec.model_validate(spec)))
        return sources[-1]

    yield open_judge
    for source in sources:
        source.close()


def row(completion: str = "an answer", prompt: str = "a question", **columns: str) -> ScoreRow:
    return ScoreRow(messages=(("user", prompt),), completion=completion, columns=columns)


def scored(source: JudgeReward, *rows: ScoreRow) -> list[ScoreOutcome]:
    return source.submit(rows, Caller()).result(timeout=60)


def error_of(outcome: ScoreOutcome) -> TrimtabError:
    assert outcome.value is None
    assert outcome.error is not None
    return outcome.error


def test_a_judge_is_asked_at_temperature_zero(opened: Opener, server: HttpServer) -> None:
    """One chat completion for a row: model, filled prompt, temperature 0, a bound on its tokens, the key."""
    source = opened(prompt="Q {prompt} A {completion} G {columns[gold]} {{}}", key="k", max_tokens=5)
    assert [outcome.value for outcome in scored(source, row(gold="g"))] == [7.0]
    [request] = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    assert request.content == {
        "model": "judge-7b",
        "messages": [{"role": "user", "content": "Q a question A an answer G g {}"}],
        "temperature": 0,
        "max_tokens": 5,
    }
    assert source.kind == "judge"
    assert source.describe().input_kind == "text"


def test_rows_keep_their_order(opened: Opener, server: HttpServer) -> None:
    """Each row has the rating of its own answer, however many are asked at a time."""
    server.answering = lambda request, _: says(request.content["messages"][0]["content"])
    source = opened(prompt="{completion}", concurrent_calls=4)
    rows = [row(str(number % 11)) for number in range(40)]
    assert [outcome.value for outcome in scored(source, *rows)] == [
        float(number % 11) for number in range(40)
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("7", 7.0), ("Rating: 7.5/10", 7.5), ("  10\n", 10.0), ("0", 0.0), ("between 3 and 4", 3.0)],
)
def test_a_rating_is_the_patterns_first_group(
    opened: Opener, server: HttpServer, content: str, expected: float
) -> None:
    """The first number of the answer, by the default pattern."""
    server.answering = in_turn(says(content))
    assert scored(opened(), row())[0].value == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("I would rather not say.", "holds no rating: 'I would rather not say.'"),
        ("11", "the judge's rating 11 is not within 0 and 10"),
        ("-1", "the judge's rating -1 is not within 0 and 10"),
        ("", "answered without text"),
        (" \n", "answered without text"),
        (None, "answered without text"),
        ([{"type": "text", "text": "7"}], "answered without text"),
    ],
)
def test_what_is_no_rating_is_the_rows_error(
    opened: Opener, server: HttpServer, content: Any, message: str
) -> None:
    """No match, out of range and empty are errors, never 0."""
    server.answering = in_turn(says(content))
    error = error_of(scored(opened(), row())[0])
    assert isinstance(error, ServiceError)
    assert message in str(error)


def test_a_rating_that_was_cut_off_is_an_error(opened: Opener, server: HttpServer) -> None:
    """A number at the very end of an answer that reached max_tokens may be the half of one."""
    server.answering = in_turn(says("Rating: 1", "length"), says("1 of 10, because", "length"))
    source = opened()
    assert "cut off within its rating" in str(error_of(scored(source, row())[0]))
    assert scored(source, row())[0].value == 1.0


@pytest.mark.parametrize(
    "answer", [{}, [], {"choices": []}, {"choices": [7]}, {"choices": [{"message": 7}]}, "7", 7]
)
def test_answers_of_other_shapes_are_errors(opened: Opener, server: HttpServer, answer: Any) -> None:
    """JSON that is no chat completion is an error of the row."""
    server.answering = in_turn(Reply(answer))
    assert "answered without text" in str(error_of(scored(opened(), row())[0]))


def test_a_pattern_without_a_number_in_its_group_is_an_error(opened: Opener, server: HttpServer) -> None:
    """A group that matches no number, or does not take part, is an error of the row."""
    server.answering = in_turn(says("good"), says("bad"))
    source = opened(pattern="(good)|bad")
    assert "is no number: 'good'" in str(error_of(scored(source, row())[0]))
    assert "holds no rating" in str(error_of(scored(source, row())[0]))


def test_what_stands_in_a_row_is_never_a_field(opened: Opener, server: HttpServer) -> None:
    """A completion that looks like a template arrives as it is."""
    text = "{prompt} {columns[hidden]} {0} }{ {completion.__class__}"
    scored(opened(prompt="{completion}"), row(text, hidden="s"))
    assert server.requests[0].content["messages"][0]["content"] == text


def test_rows_that_cannot_be_asked_have_errors_in_their_place(opened: Opener) -> None:
    """A missing column and token ids are errors of their rows; the others are rated."""
    ids = ScoreRow(messages=(), completion="", ids=TokenIds(prompt=(1,), completion=(2,), fingerprint="f"))
    outcomes = scored(opened(prompt="{completion} {columns[gold]}"), row(gold="g"), row(), ids)
    assert outcomes[0].value == 7.0
    error = error_of(outcomes[1])
    assert isinstance(error, InvalidInput)
    assert list(error.violations) == ["columns[gold]"]
    assert isinstance(error_of(outcomes[2]), Mismatch)


def test_full_and_away_are_tried_again_and_nothing_else(opened: Opener, server: HttpServer) -> None:
    """429 and 503 are tried again after what they ask for; 500 and 400 are the row's error at once."""
    nothing = (("retry-after", "0"),)
    server.answering = in_turn(Reply(b"", 429, nothing), Reply(b"", 503, nothing), says("7"))
    assert scored(opened(), row())[0].value == 7.0
    assert len(server.requests) == 3
    for status in (500, 400):
        server.requests.clear()
        server.answering = in_turn(Reply(b"", status))
        error_of(scored(opened(), row())[0])
        assert len(server.requests) == 1


def test_a_judge_that_hangs_costs_an_error(opened: Opener, server: HttpServer) -> None:
    """No answer within timeout_seconds is DEADLINE_EXCEEDED for the row."""
    released: Future[None] = Future()

    def hangs(request: Request, handler: BaseHTTPRequestHandler) -> Reply:
        released.result(timeout=60)
        return says("7")

    server.answering = hangs
    outcomes = scored(opened(timeout_seconds=0.5), row(), row())
    released.set_result(None)
    assert all(isinstance(error_of(outcome), Expired) for outcome in outcomes)


def test_a_judge_that_fails_is_left_alone(opened: Opener, server: HttpServer) -> None:
    """After failures in a row the circuit is open: no request goes out, rows are UNAVAILABLE at once."""
    server.answering = in_turn(Reply(b"", 500))
    source = opened(breaker_failures=3, breaker_seconds=600, concurrent_calls=1)
    outcomes = scored(source, *[row()] * 5)
    assert len(server.requests) == 3
    assert [isinstance(error_of(outcome), Unavailable) for outcome in outcomes] == [False] * 3 + [True] * 2
    assert "has failed repeatedly" in str(outcomes[4].error)


def test_the_digest_is_of_what_is_asked(opened: Opener) -> None:
    """Prompt, model, pattern and bounds change it; key and time limits do not."""
    base = opened().digest
    for field in (
        {"prompt": "{completion}"},
        {"model": "b"},
        {"pattern": "(7)"},
        {"high": 5.0},
        {"max_tokens": 2},
    ):
        assert opened(**field).digest != base
    assert opened(key="k", timeout_seconds=1.0, attempts=1).digest == base


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{question}"}, "{question} is not known; expected {prompt}"),
        ({"prompt": "{prompt.__class__}"}, "is not known"),
        ({"prompt": "{columns[a][b]}"}, "is not known"),
        ({"prompt": "{columns[]}"}, "is not known"),
        ({"prompt": "{prompt!r}"}, "is not known"),
        ({"prompt": "{"}, "braces doubled"),
        ({"prompt": "{}"}, "is not known"),
        ({"pattern": "7"}, "no group"),
        ({"pattern": "("}, "no regular expression"),
        ({"low": 5.0, "high": 5.0}, "low below high"),
        ({"url": "judge"}, "expected http"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(fields: dict[str, Any], message: str) -> None:
    """What cannot work is InvalidInput when the judge is opened."""
    spec = JudgeSpec.model_validate({"url": "http://127.0.0.1:1/v1", "model": "m", **fields})
    with pytest.raises(InvalidInput) as caught:
        JudgeReward(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_prompt_is_a_template() -> None:
    """What the configuration brings fills in both texts."""
    spec = JudgeSpec.model_validate({"url": "http://127.0.0.1:1/v1", "model": "m"})
    filled = Template(spec.prompt).filled(row("AAA", "QQQ"))
    assert "Question:\nQQQ\n\nAnswer:\nAAA\n" in filled
