"""Scoring through outages and in any process, against a service that stops and starts."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from trimtab.clients import scorers
from trimtab.clients.errors import (
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    TrimtabClientError,
    UnavailableError,
)
from trimtab.clients.patience import Patience
from trimtab.clients.scorers import (
    AsyncScorer,
    Scorer,
    shared_async_batcher,
    shared_batcher,
    with_environment,
)
from trimtab.reward.v1 import reward_pb2 as reward

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def rows(count: int) -> list[reward.ScoreInput]:
    return [reward.ScoreInput(completion="x" * (index + 1)) for index in range(count)]


def score(kind: type, target: str, inputs: list[reward.ScoreInput], **settings: Any) -> list[float]:
    """By either twin."""

    async def later() -> list[float]:
        scorer = AsyncScorer(target, **settings)
        try:
            return [each.value for each in await scorer.score(inputs)]
        finally:
            await scorer.close()

    if kind is AsyncScorer:
        return asyncio.run(later())
    scorer = Scorer(target, **settings)
    try:
        return [each.value for each in scorer.score(inputs)]
    finally:
        scorer.close()


twins = pytest.mark.parametrize("kind", [Scorer, AsyncScorer])


@twins
def test_large_batches_are_split(kind: type, fake: Any) -> None:
    """Rows beyond the limit of a call go in further calls; the scores come back in the rows' order."""
    assert score(kind, fake.target, rows(25), max_rows=10, model="hh") == [float(n) for n in range(1, 26)]
    assert sorted(len(request.inputs) for request in fake.requests) == [5, 10, 10]
    assert score(kind, fake.target, []) == []


@twins
def test_an_outage_is_waited_out(
    kind: type, fake: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A service that is away costs a wait; one line says that it began, one that it ended."""
    fake.stop()

    def start_again() -> None:
        until(lambda: "does not answer" in caplog.text)
        fake.start()

    with caplog.at_level(logging.WARNING, logger="trimtab"):
        threading.Thread(target=start_again, daemon=True).start()
        assert score(kind, fake.target, rows(8), max_rows=2) == [float(n) for n in range(1, 9)]
    began, ended = (record.getMessage() for record in caplog.records)
    assert fake.target in began and "trying again for 300 s" in began
    assert "answers again" in ended


@twins
def test_patience_ends(kind: type, fake: Any) -> None:
    """A service that stays away is an error in the end, of its own type."""
    fake.stop()
    with pytest.raises(UnavailableError):
        score(kind, fake.target, rows(1), patience_seconds=0.4)


@twins
def test_what_no_wait_mends_is_raised_at_once(kind: type, fake: Any) -> None:
    """An error that another attempt would meet again ends the call at the first."""
    fake.failures.append(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(NotFoundError):
        score(kind, fake.target, rows(1))
    assert len(fake.requests) == 1


@twins
def test_one_failed_part_fails_the_batch(kind: type, fake: Any) -> None:
    """A batch has all its scores or an error, also where only one of its calls failed."""
    fake.failures.append(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(InvalidArgumentError):
        score(kind, fake.target, rows(9), max_rows=2, calls_in_flight=1)


@pytest.mark.parametrize("code", [UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_service_that_dies_under_a_call(code: grpc.StatusCode, fake: Any) -> None:
    """What a call ends with when its service goes is followed by another attempt."""
    fake.failures.extend([code] * 3)
    assert score(Scorer, fake.target, rows(1)) == [1.0]
    assert len(fake.requests) == 4


@twins
def test_a_service_killed_under_a_call(
    kind: type, fake: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A call that was under way when its service went is made again, and its answer is whole."""
    fake.gate.clear()

    def away_and_back() -> None:
        until(lambda: fake.requests)
        fake.stop()
        fake.gate.set()
        until(lambda: "does not answer" in caplog.text)
        fake.start()

    with caplog.at_level(logging.WARNING, logger="trimtab"):
        threading.Thread(target=away_and_back, daemon=True).start()
        assert score(kind, fake.target, rows(3)) == [1.0, 2.0, 3.0]


def test_a_pickled_scorer_scores(fake: Any) -> None:
    """A scorer that was used can be pickled; the copy has its settings and a channel of its own."""
    scorer = Scorer(fake.target, model="hh", patience_seconds=7, timeout_seconds=9)
    scorer.score(rows(1))
    copy = pickle.loads(pickle.dumps(scorer))  # noqa: S301 - our own
    assert (copy.model, copy.patience.seconds, copy.options) == ("hh", 7, scorer.options)
    assert copy.score(rows(2))[1].value == 2.0
    scorer.close()
    copy.close()
    assert copy.score(rows(1))[0].value == 1.0
    copy.close()


FORKS = """
import os, sys
from trimtab.trl import reward
score = reward(sys.argv[1])
child = os.fork()
assert score(prompts=["p"], completions=["four"]) == [4.0]
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_scores(fake: Any) -> None:
    """Parent and forked child each score, by channels of their own."""
    ended = subprocess.run([sys.executable, "-c", FORKS, fake.target], timeout=60)
    assert ended.returncode == 0


def error(kind: type[TrimtabClientError], **more: Any) -> TrimtabClientError:
    return kind(UNAVAILABLE, "away", **more)


def test_patience_by_the_clock() -> None:
    """Pauses grow, bounded; the last ends where patience does; after that the error is raised."""
    now = [100.0]
    patience = Patience(30, "somewhere", clock=lambda: now[0])
    pauses = [patience.failed(error(UnavailableError), since=100, attempt=n) for n in range(1, 9)]
    assert pauses[0] <= 0.25
    assert 5 <= pauses[-1] <= 10
    now[0] = 129.9
    assert patience.failed(error(UnavailableError), since=100, attempt=5000) <= 0.1 + 1e-9
    now[0] = 130.0
    with pytest.raises(UnavailableError):
        patience.failed(error(UnavailableError), since=100, attempt=9)


def test_a_full_service_says_when() -> None:
    """With RetryInfo the pause is what the service asked for, and up to a quarter more."""
    pause = Patience(60, "somewhere").failed(error(OverloadedError, retry_seconds=2.0), since=1e12, attempt=1)
    assert 2.0 <= pause <= 2.5


def test_the_environment_fills_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given comes from the environment; a target must come from somewhere."""
    monkeypatch.delenv("TRIMTAB_TARGET", raising=False)
    with pytest.raises(ValueError, match="TRIMTAB_TARGET"):
        with_environment({"target": "", "model": "hh"})
    monkeypatch.setenv("TRIMTAB_TARGET", "there:1")
    monkeypatch.setenv("TRIMTAB_MODEL", "other")
    assert with_environment({"target": "", "model": "hh"}) == {"target": "there:1", "model": "hh"}


def test_what_is_given_as_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience, no TLS and no key are settings of their own, not ones to be filled in."""
    monkeypatch.setenv("TRIMTAB_KEY", "secret")
    monkeypatch.delenv("TRIMTAB_MODEL", raising=False)
    given = {"target": "reward.example:1", "patience_seconds": 0, "tls": False, "key": ""}
    settings = with_environment({**given, "model": None, "key_file": ""})
    assert settings == given
    scorer = Scorer(**settings)  # with the environment's key it would be refused: in the clear
    assert scorer.patience.seconds == 0


def test_wrong_options_are_told_at_once() -> None:
    """A name that no client has, or a key that would travel in the clear, is refused before the first call."""
    with pytest.raises(TypeError, match="unexpected option patience"):
        Scorer("a:1", patience=5)
    with pytest.raises(ValueError, match="in the clear"):
        AsyncScorer("reward.example:50053", key="secret")


def test_a_key_goes_along(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's key is sent with every call."""
    monkeypatch.setenv("TRIMTAB_KEY", "secret")
    assert score(Scorer, fake.target, rows(1)) == [1.0]
    assert fake.metadata[-1]["authorization"] == "Bearer secret"


def test_batchers_are_shared_by_settings(fake: Any) -> None:
    """The same settings give the same batcher, so that calls meet; a loop has its own."""
    settings = {"target": fake.target, "model": "hh"}
    assert shared_batcher(settings) is shared_batcher(dict(settings))
    assert shared_batcher(settings) is not shared_batcher({**settings, "model": "other"})

    async def own() -> Any:
        return shared_async_batcher(settings)

    assert asyncio.run(own()) is not asyncio.run(own())


def test_loops_that_have_ended_leave_no_channel(fake: Any) -> None:
    """A trainer that begins a loop for each step has one connection at a time, not one for each step so far."""
    scorer = AsyncScorer(fake.target)

    async def step() -> None:
        await scorer.score(rows(1))
        shared_async_batcher({"target": fake.target})

    for _ in range(5):
        asyncio.run(step())
    assert len(scorer._opened) == 1
    assert sum(loop.is_closed() for loop in scorers._async_batchers) <= 1
