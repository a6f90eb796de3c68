"""What happens around every HTTP request: admission, body size, errors to answers, metrics, ids in the logs.

The twin of interceptors.py, as plain ASGI: knows no service and no framework. Health passes untouched: a full
service must still say that it lives.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.common import telemetry, tracing
from services.common.admission import Admission, Full
from services.common.errors import Forbidden, Overloaded, TooLarge, Unavailable
from services.common.http_status import HttpAnswer, HttpRefusal, http_answer
from services.common.interceptors import ROLLOUT_KEY, RUN_KEY

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
# Of the service's life: loading; answering; SIGTERM came, and what is asked is still answered.
Stage = Literal["starting", "serving", "draining"]

REQUESTS = Counter("trimtab_http_requests", "Requests answered, by route and status.", ["route", "status"])
SECONDS = Histogram(
    "trimtab_http_request_seconds",
    "Time from a request's headers to its end, seconds.",
    ["route"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
IN_FLIGHT = Gauge("trimtab_http_requests_in_flight", "Requests being worked on.")
_IDS = {key.encode(): key.removeprefix("trimtab-") for key in (RUN_KEY, ROLLOUT_KEY)}
# Bodies of several callers are in memory at once; this many of the largest may be.
_LARGEST_AT_ONCE = 4
_log = structlog.get_logger(__name__)


class ClientGone(Exception):
    """The connection ended before the answer: nobody is there to be told anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """requests: worked on at once, more get 429. body_*: one body's size, and the time it may take to arrive."""

    requests: int = 256
    body_bytes: int = 64 << 20
    body_seconds: float = 60.0


class BodyReader:
    """Reads bodies up to a size each and a size together; too much is refused before it is in memory."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._room = _LARGEST_AT_ONCE * limits.body_bytes

    @asynccontextmanager
    async def body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, [length] bytes. To be left as soon as it is parsed: only then is its room free.

        Raises TooLarge (413), Overloaded (429), HttpRefusal (408, 415) and ClientGone.
        """
        _check_headers(scope, self._limits.body_bytes)
        parts: list[bytes] = []
        size = 0
        try:
            limit = asyncio.timeout(self._limits.body_seconds)
            try:
                async with limit:
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        part: bytes = message.get("body", b"")
                        more = message.get("more_body", False)
                        size += len(part)
                        self._room -= len(part)
                        self._check(size)
                        parts.append(part)
            except TimeoutError:
                raise HttpRefusal(
                    408,
                    "DEADLINE_EXCEEDED",
                    f"the body did not arrive within {self._limits.body_seconds:g} s",
                ) from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._room += size

    def _check(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        if self._room < 0:
            raise Overloaded("too many large requests at once")


class HttpGuard:
    """Wraps an ASGI application. `exempt` paths are health: neither counted nor refused.

    local_names_only: refuse a Host that is a name other than localhost. A service that trusts whoever reaches
    loopback would otherwise trust a web page whose name was pointed at 127.0.0.1 (DNS rebinding).
    """

    def __init__(
        self, app: AsgiApp, limits: HttpLimits, *, exempt: Iterable[str] = (), local_names_only: bool = False
    ) -> None:
        self._app = app
        self._admission = Admission(limits.requests)
        self._exempt = frozenset(exempt)
        self._local_names_only = local_names_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        answering = _Answering(send)
        started = time.perf_counter()
        IN_FLIGHT.inc()
        span = f"HTTP {scope['method']} {scope['path'][:64]}"
        try:
            with telemetry.bound(**_ids(scope)), tracing.call(span, _texts(scope)) as trace:
                await self._guarded(scope, receive, answering)
                if trace.span is not None:
                    trace.span.set_attribute("http.response.status_code", answering.status)
        finally:
            IN_FLIGHT.dec()
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(route, str(answering.status)).inc()
            SECONDS.labels(route).observe(time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, answering: _Answering) -> None:
        try:
            if self._local_names_only:
                _check_host(scope)
            await self._admitted(scope, receive, answering)
        except asyncio.CancelledError:
            # Only the server does this, when draining is over.
            await answering.fail(http_answer(Unavailable("the service is going down")))
        except ClientGone:
            answering.status = 499
        except Exception as error:
            await answering.fail(answer_for(scope, error))

    async def _admitted(self, scope: Scope, receive: Receive, answering: _Answering) -> None:
        try:
            with self._admission.place():
                await self._app(scope, receive, answering.send)
        except Full:
            # Its body was not read.
            await self._admission.linger()
            raise


class _Answering:
    """The sending side of one request, which knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def fail(self, answer: HttpAnswer) -> None:
        if self.status:
            return
        headers = [(name.encode(), value.encode()) for name, value in answer.headers]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": answer.body})


def answer_for(scope: Scope, error: Exception) -> HttpAnswer:
    """The answer for an error, and its line in the log."""
    answer = http_answer(error)
    where = {"method": scope["method"], "path": scope["path"][:200], "status": answer.status}
    if answer.incident:
        _log.error("request failed", **where, incident=answer.incident, exc_info=error)
    elif not isinstance(error, Full):
        _log.info("request refused", **where, reason=str(error)[:500])
    return answer


def header(scope: Scope, name: bytes) -> str:
    """A request header's value, empty where it is not given. Names are in lower case."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _check_headers(scope: Scope, most: int) -> None:
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpRefusal(
            415, "INVALID_ARGUMENT", f"expected Content-Type: application/json, got {kind or 'none'}"
        )
    if header(scope, b"content-encoding").strip().lower() not in ("", "identity"):
        raise HttpRefusal(415, "INVALID_ARGUMENT", "a compressed body is not accepted")
    length = header(scope, b"content-length")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most} bytes (server.max_message_mib)")


def _check_host(scope: Scope) -> None:
    host = header(scope, b"host").strip().lower()
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if name not in ("", "localhost"):
            raise Forbidden(f"this service is for this machine alone; {name[:100]} is another name") from None


def _texts(scope: Scope) -> Iterator[tuple[str, str]]:
    for name, value in scope["headers"]:
        yield name.decode("latin-1"), value.decode("latin-1")


def _ids(scope: Scope) -> dict[str, str]:
    return {_IDS[key]: value.decode("latin-1") for key, value in scope["headers"] if key in _IDS}
