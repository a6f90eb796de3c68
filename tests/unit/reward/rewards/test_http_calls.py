"""HTTP requests against a real server on loopback that refuses, hangs, trickles and lies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from services.common.errors import (
    Expired,
    InvalidInput,
    Mismatch,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unavailable,
)
from services.reward.rewards.calling import TryAgain
from services.reward.rewards.http_calls import HttpCalls, access_to, parsed_url, retry_after, trust
from tests.fakes.http_server import Answering, HttpServer, Reply, Request, in_turn

NO_KEY = access_to("test", key="", key_file=None, allow_plaintext=False)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(in_turn(Reply({"a": 1}))) as started:
        yield started


@pytest.fixture
def calls(server: HttpServer) -> Iterator[HttpCalls]:
    opened = HttpCalls(server.url, access=NO_KEY, connections=4)
    yield opened
    opened.close()


def ask(calls: HttpCalls, server: HttpServer, *, seconds: float = 20.0) -> object:
    return calls.ask("POST", f"{server.url}/path", {"q": 1}, ends=time.monotonic() + seconds)


def test_json_goes_and_comes(calls: HttpCalls, server: HttpServer) -> None:
    """The body goes as JSON without compression; the answer's JSON comes back."""
    assert ask(calls, server) == {"a": 1}
    [request] = server.requests
    assert (request.method, request.path, request.content) == ("POST", "/path", {"q": 1})
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in {name.lower() for name in request.headers}


@pytest.mark.parametrize(
    ("status", "content", "kind", "says"),
    [
        (400, {"error": {"code": "INVALID_ARGUMENT", "message": "bad"}}, InvalidInput, "answered 400: bad"),
        (400, {"error": {"code": "FAILED_PRECONDITION", "message": "tokenizer"}}, Mismatch, "tokenizer"),
        (400, {"error": {"code": None, "message": "OpenAI's shape"}}, InvalidInput, "OpenAI's shape"),
        (422, {"detail": "FastAPI's shape"}, InvalidInput, "FastAPI's shape"),
        (404, {"error": "text alone"}, NotFound, "text alone"),
        (401, b"", ServiceError, "answered 401"),
        (403, b"<html>\n no", ServiceError, "answered 403: <html> no"),
        (413, b"", TooLarge, "answered 413"),
        (500, [1], ServiceError, "answered 500: "),
        (504, b"", Expired, "answered 504"),
        (302, b"", ServiceError, "answered 302"),
        (200, b"{", ServiceError, "no JSON"),
        (200, b"[" * 100_000, ServiceError, "no JSON"),
    ],
)
def test_a_status_is_an_error_of_ours(
    calls: HttpCalls, server: HttpServer, status: int, content: object, kind: type[TrimtabError], says: str
) -> None:
    """What no other attempt can mend is raised with the server's own words, in one line."""
    server.answering = in_turn(Reply(content, status, (("location", "http://127.0.0.1:1/"),)))
    with pytest.raises(TrimtabError) as caught:
        ask(calls, server)
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "header", "kind", "pause"),
    [
        (429, "7", Overloaded, 7.0),
        (429, None, Overloaded, None),
        (503, "2", Unavailable, 2.0),
        (503, None, Unavailable, None),
        (502, None, Unavailable, None),
    ],
)
def test_full_and_away_are_worth_another_attempt(
    calls: HttpCalls,
    server: HttpServer,
    status: int,
    header: str | None,
    kind: type[TrimtabError],
    pause: float | None,
) -> None:
    """429, 502 and 503 are told with the pause that Retry-After asks for."""
    server.answering = in_turn(Reply(b"", status, (("retry-after", header),) if header else ()))
    with pytest.raises(TryAgain) as caught:
        ask(calls, server)
    assert type(caught.value.error) is kind
    assert caught.value.pause_seconds == pause


def test_retry_after_is_read_in_both_forms() -> None:
    """Seconds or an HTTP date; what cannot be read says nothing, what is absurd is bounded."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    seconds = retry_after({"retry-after": soon})
    assert seconds is not None
    assert 50 < seconds <= 100
    assert retry_after({"retry-after": past}) == 0.0
    assert retry_after({"retry-after": "9" * 40}) == 3600.0
    for text in ("soon", "-1", "1.5x", "\u0663"):
        assert retry_after({"retry-after": text}) in (None, 3.0)
    assert retry_after({}) is None


def silent(request: Request, handler: BaseHTTPRequestHandler) -> None:
    time.sleep(30)


def trickles_headers(request: Request, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(300):
        handler.wfile.write(f"x-{number}: 1\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.1)


def trickles_its_body(request: Request, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    for _ in range(300):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.parametrize("answering", [silent, trickles_headers, trickles_its_body])
def test_an_answer_that_never_ends_is_ended(
    calls: HttpCalls, server: HttpServer, answering: Answering
) -> None:
    """Silence, and bytes that keep coming one by one, are DEADLINE_EXCEEDED at the deadline."""
    server.answering = answering
    began = time.monotonic()
    with pytest.raises(Expired, match="has not answered in time"):
        ask(calls, server, seconds=1.0)
    assert time.monotonic() - began < 20


def test_an_answer_without_bounds_is_refused(
    calls: HttpCalls, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More bytes than any answer has are not collected."""
    monkeypatch.setattr("services.reward.rewards.http_calls.MAX_ANSWER_BYTES", 1000)
    server.answering = in_turn(Reply(b"1" * 100_000))
    with pytest.raises(ServiceError, match="more than 1000 bytes"):
        ask(calls, server)


def test_a_server_that_is_gone_or_hangs_up_is_unavailable(calls: HttpCalls, server: HttpServer) -> None:
    """A refused connection and one closed in the middle are worth another attempt."""

    def hangs_up(request: Request, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        handler.close_connection = True

    server.answering = hangs_up
    with pytest.raises(TryAgain, match="cannot be reached"):
        ask(calls, server)
    server.stop()
    with pytest.raises(TryAgain, match="cannot be reached") as caught:
        ask(calls, server)
    assert isinstance(caught.value.error, Unavailable)


def test_the_key_is_read_anew_when_its_file_changes(server: HttpServer, tmp_path: Path) -> None:
    """A rotated key goes along with the next request."""
    file = tmp_path / "key"
    file.write_text("first\n")
    access = access_to(server.url, key="", key_file=file, allow_plaintext=False)
    calls = HttpCalls(server.url, access=access, connections=1)
    ask(calls, server)
    file.write_text("the second\n".replace("the ", ""))
    ask(calls, server)
    calls.close()
    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer first",
        "Bearer second",
    ]


def test_a_key_does_not_travel_in_the_clear(tmp_path: Path) -> None:
    """Beyond this machine a key needs https, or somebody's word that the way is safe; no message holds the key."""
    with pytest.raises(InvalidInput, match="in the clear") as caught:
        HttpCalls(
            "http://judge.example/v1",
            access=access_to("", key="secret", key_file=None, allow_plaintext=False),
            connections=1,
        )
    assert "secret" not in str(caught.value)
    for url, allowed in (
        ("https://judge.example/v1", False),
        ("http://judge.example/v1", True),
        ("http://[::1]:8053/v1", False),
    ):
        access = access_to("", key="secret", key_file=None, allow_plaintext=allowed)
        HttpCalls(url, access=access, connections=1).close()
    with pytest.raises(InvalidInput, match="key for x"):
        access_to("x", key="", key_file=tmp_path / "nowhere", allow_plaintext=False)


def test_the_environments_key_is_not_sent_elsewhere(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRIMTAB_KEY, which clients of this service use, does not go to other servers."""
    monkeypatch.setenv("TRIMTAB_KEY", "ours")
    access = access_to(server.url, key="", key_file=None, allow_plaintext=False)
    calls = HttpCalls(server.url, access=access, connections=1)
    ask(calls, server)
    calls.close()
    assert "authorization" not in {name.lower() for name in server.requests[0].headers}


@pytest.mark.parametrize(
    "url",
    ["ftp://host/", "http://", "host:80", "http://name:secret@host/", "http://[::1", "http://host:port/"],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    """What is no http URL, or has a password in it, is InvalidInput in one line."""
    with pytest.raises(InvalidInput) as caught:
        parsed_url(url)
    assert "secret" not in str(caught.value)


def test_a_wrong_ca_file_is_told(tmp_path: Path) -> None:
    """A file that is not there, or holds no certificate, is InvalidInput naming it."""
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    for path in (empty, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match=f"ca_file {path}"):
            trust(path)
