"""Calls of engines behind a URL: how many there are at once, and what becomes of those that nobody waits for."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from services.common.errors import InvalidInput, Unavailable
from services.models.facts import ModelFacts
from services.policy.engines.base import Draft, Request, Sampling
from services.policy.engines.remote import CallsApart, Connections, JsonServer
from tests.fakes.http_server import HttpServer, Reply
from tests.fakes.http_server import Request as HttpRequest
from tests.fakes.processes import until

FACTS = ModelFacts(
    name="m",
    architecture="causal",
    tokenizer_fingerprint="",
    chat_template_digest="",
    model_digest="",
    context_length=64,
    vocabulary_size=100,
    dtype="float32",
)


def requests(count: int) -> list[Request]:
    prompt = np.array([5], np.int32)
    return [Request(prompt_ids=prompt, sampling=Sampling(), index=index) for index in range(count)]


def setting(event: threading.Event, condition: Callable[[], bool]) -> threading.Thread:
    """Sets the event once the condition holds."""

    def watch() -> None:
        until(condition, "what stops it")
        event.set()

    watching = threading.Thread(target=watch)
    watching.start()
    return watching


def finishes(drafts: Sequence[Draft]) -> list[str | None]:
    return [draft.finish for draft in drafts]


class Endless:
    """A server that works on each completion until its client hangs up; on one with `refuse` set not at all."""

    def __init__(self) -> None:
        self.begun = self.hung_up = 0
        self.refuse = False
        self._lock = threading.Lock()

    def __call__(self, request: HttpRequest, handler: BaseHTTPRequestHandler) -> Reply | None:
        if request.content["index"] == 1 and self.refuse:
            until(lambda: self.begun == 1, "the other call")
            return Reply({"error": "no"}, 400)
        with self._lock:
            self.begun += 1
        select.select([handler.connection], [], [], 60)  # readable: nothing more comes but the end
        ended = not handler.connection.recv(1)
        with self._lock:
            self.hung_up += ended
        handler.close_connection = True
        return None


def test_the_server_sees_that_nobody_waits_any_more() -> None:
    """A stop hangs up on every call that is under way; what is asked next finds the server free."""
    endless = Endless()
    with HttpServer(endless) as server:
        calls, client = CallsApart(2), JsonServer("fake", server.url)

        def complete(request: Request, connections: Connections) -> Draft:
            client.post("/", {"index": request.index}, connections)
            return Draft(finish="stop")

        for so_far in (0, 2):
            stopping = threading.Event()
            watching = setting(stopping, partial(lambda so_far: endless.begun == so_far + 2, so_far))
            assert finishes(calls.generate(complete, requests(3), FACTS, stopping, None)) == [None] * 3
            watching.join()
            until(lambda: endless.hung_up == endless.begun, "the server's notice")
        assert endless.begun == 4
        client.close()


def test_an_error_of_one_hangs_up_on_the_others() -> None:
    """Nobody gets what they would bring: the error comes at once, not after the longest of them."""
    endless = Endless()
    endless.refuse = True
    with HttpServer(endless) as server:
        client = JsonServer("fake", server.url)

        def complete(request: Request, connections: Connections) -> Draft:
            client.post("/", {"index": request.index}, connections)
            return Draft(finish="stop")

        with pytest.raises(InvalidInput, match="fake answered 400: no"):
            CallsApart(2).generate(complete, requests(2), FACTS, threading.Event(), None)
        until(lambda: endless.hung_up == 1, "the server's notice")
        client.close()


def test_a_connection_that_is_made_too_late_is_cut_too() -> None:
    """The stop came while it was being made: nothing is sent over it."""
    with HttpServer(lambda *_: Reply({})) as server:
        client, connections = JsonServer("fake", server.url), Connections()
        connections.cut()
        with pytest.raises(Unavailable):
            client.post("/", {"index": 0}, connections)
        assert server.requests == []
        client.close()


def test_calls_that_were_given_up_count_until_they_have_ended() -> None:
    """Where a call cannot be cut, the next one waits for it; and a stop ends that waiting as well."""
    calls, ended, begun = CallsApart(2), threading.Event(), list[int]()

    def complete(request: Request, _: Connections) -> Draft:
        begun.append(request.index)
        ended.wait(60)
        return Draft(finish="stop")

    def stopped_by(stopping: threading.Event) -> list[str | None]:
        return finishes(calls.generate(complete, requests(2), FACTS, stopping, None))

    stopping = threading.Event()
    watching = setting(stopping, lambda: len(begun) == 2)
    assert stopped_by(stopping) == [None] * 2
    watching.join()
    again = threading.Event()
    threading.Timer(0.3, again.set).start()
    assert stopped_by(again) == [None] * 2
    assert len(begun) == 2
    ended.set()
    assert stopped_by(threading.Event()) == ["stop"] * 2
    assert len(begun) == 4
