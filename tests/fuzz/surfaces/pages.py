"""The preference service's HTTP routes, over a real socket: paths, methods, queries, headers, cookies, JSON bodies.

No status of 500 or above but 503, a content type for every body, the page's own security headers on every answer, no
word of a stack trace, and who did not sign in sees nothing.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import grpc

from services.preference.application import PreferenceApplication
from tests.fuzz import odd, people, rpc
from tests.fuzz.surface import Surface
from trimtab.preference.v1 import preference_pb2 as wire
from trimtab.preference.v1 import preference_pb2_grpc

_PAGES = (
    "/",
    "/join",
    "/label",
    "/overview",
    "/browse",
    "/export",
    "/healthz",
    "/readyz",
    "/static/style.css",
)
_CALLS = ("/api/sign-in", "/api/tasks", "/api/answers", "/api/release")
_QUERY = ("campaign", "annotator", "choice", "text", "kind", "disputed", "page", "form")
_BODIES: dict[str, Any] = {
    "/api/sign-in": {"token": "tp_x"},
    "/api/tasks": {"limit": 3},
    "/api/answers": {
        "answers": [
            {
                "unit": "item0",
                "kind": "ranking",
                "revision": 1,
                "ranks": [1, 2, 2],
                "confidence": 0.5,
                "comment": "so",
                "seconds": 2.5,
            },
            {
                "unit": "item1",
                "kind": "pair",
                "revision": 2,
                "ranks": [1, 2],
                "choice": None,
                "withdrawn": False,
            },
        ]
    },
    "/api/release": {"until": 1e12},
}
_OPEN = ("/join", "/healthz", "/readyz", "/static/", "/api/")


@dataclass(frozen=True, slots=True)
class Request:
    """What is written to the socket."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    signed_in: bool


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Four items to judge; an owner who is signed in."""
    config = people.config(folder, server={"http_port": 0})
    with rpc.served(config, lambda: PreferenceApplication(config)) as endpoints:
        with grpc.insecure_channel(endpoints.grpc) as channel:
            preference_pb2_grpc.PreferenceServiceStub(channel).UploadCandidates(
                wire.UploadCandidatesRequest(items=[people.item(number) for number in range(people.ITEMS)]),
                timeout=rpc.TIMEOUT_SECONDS,
            )
        site = _Site(endpoints.http, people.invited(config)["owner"])
        site.good()
        yield Surface(site.draw, site.run, site.good)


class _Site:
    """The service as an owner's browser sees it, and as a stranger does."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        body = json.dumps({"token": token}).encode()
        status, headers, _ = self._ask(Request("POST", "/api/sign-in", (), body, signed_in=False))
        assert status == 200, status
        self._own = [("cookie", headers["set-cookie"].partition(";")[0])]
        _, _, page = self._ask(Request("GET", "/label", (), b"", signed_in=True))
        self._own.append(("x-csrf-token", page.decode().partition('data-csrf="')[2].partition('"')[0]))

    def draw(self, rng: Random) -> Request:
        """A request to a route that is there, most often, by somebody who may, most often."""
        signed_in = rng.random() < 0.85
        calls = rng.random() < 0.6
        path = rng.choice(_CALLS if calls else _PAGES)
        if rng.random() < 0.03:
            path, calls, signed_in = "/api/sign-out", True, False  # who did sign in stays so
        tree = _BODIES.get(path, {})
        body = json.dumps(odd.changed(rng, tree) if rng.random() < 0.8 else tree).encode() if calls else b""
        if rng.random() < 0.1:
            body = rng.choice(
                (odd.damaged(rng, body), b"[" * 100_000, b'{"a":' * 20_000, b"9" * 5_000, b"\xff")
            )
        query = {
            rng.choice(_QUERY): rng.choice((odd.text(rng), "fuzz", "1", "first", "all"))
            for _ in range(rng.randrange(3))
        }
        if rng.random() < 0.1:
            path += quote(odd.text(rng)[:200], safe="/.")
        if query:
            path += "?" + urlencode(query, errors="replace")[:8_000]
        method = (
            ("POST" if calls else "GET")
            if rng.random() < 0.9
            else rng.choice(("PUT", "DELETE", "HEAD", "PATCH"))
        )
        return Request(method, path, self._headers(rng), body, signed_in)

    def _headers(self, rng: Random) -> tuple[tuple[str, str], ...]:
        names = (
            "origin",
            "sec-fetch-site",
            "x-csrf-token",
            "cookie",
            "accept",
            "traceparent",
            "x-request-id",
            "content-type",
        )
        values = (
            "",
            "null",
            "a" * 500,
            "same-origin",
            "http://evil.example",
            "trimtab=x; trimtab=y",
            "\xff",
            "text/plain",
        )
        return tuple((rng.choice(names), rng.choice(values)) for _ in range(rng.choice((0, 0, 0, 1, 2))))

    def run(self, sent: Request) -> str:
        """The status."""
        status, headers, body = self._ask(sent)
        assert status < 500 or status == 503, f"{status}: {body[:300]!r}"
        assert not body or status == 204 or headers.get("content-type"), f"{status} has a body of no type"
        assert headers.get("x-content-type-options") == "nosniff" or status == 400, (
            f"{status} without its headers"
        )
        assert b"Traceback" not in body, f"{status} with a stack trace"
        path = sent.path.partition("?")[0]
        if not sent.signed_in and path in _PAGES and not path.startswith(_OPEN):
            assert status in (303, 400, 401, 403, 405, 503), f"{status} for a stranger"
        return f"{path if path in (*_PAGES, *_CALLS) else 'elsewhere'} {status}"

    def good(self) -> None:
        """The owner's pages are there."""
        for path in ("/label", "/overview", "/browse", "/export?form=all"):
            status, _, body = self._ask(Request("GET", path, (), b"", signed_in=True))
            assert status == 200 and (body or path.startswith("/export")), f"{path} {status}"

    def _ask(self, sent: Request) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=rpc.TIMEOUT_SECONDS)
        headers = {"content-type": "application/json", **dict(self._own if sent.signed_in else [])} | dict(
            sent.headers
        )
        try:
            connection.request(sent.method, sent.path, body=sent.body or None, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()
