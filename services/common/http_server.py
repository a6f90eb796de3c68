"""HTTP beside gRPC: uvicorn on a socket of ours, inside the service's own event loop. Knows no service.

    open() ──▶ listening ──drain(s)──▶ no new connections; requests end or are cut off ──▶ close()

Decision: the socket is bound here, so that a port in use is one clear line and not an exit from inside uvicorn.
Decision: uvicorn's signal handlers are off; the service has one way to stop, for gRPC and HTTP together.
Decision: uvicorn has no time limit for headers; a connection that never finishes its request is ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.common.errors import ConfigError
from services.common.http_guard import AsgiApp

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

_HEADER_SECONDS = 30.0
# Longer than the idle time of the usual clients' pools, so that it is the client who ends an idle connection.
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024
_MAX_HEADER_BYTES = 64 << 10
_LAST_WORDS_SECONDS = 1.0


class HttpServer:
    """One listening HTTP port.

    tls: a server-side context (access/tls.py makes one); one that asks for certificates makes it mTLS, and requests
    then carry the certificate, as getpeercert() gives it, in scope["state"]["peer_certificate"].
    """

    def __init__(
        self,
        app: AsgiApp,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        header_seconds: float = _HEADER_SECONDS,
    ) -> None:
        self._host = host
        self._port = port
        self._header_seconds = header_seconds
        self._config = uvicorn.Config(
            cast("ASGIApplication", app),
            http=self._protocol,  # type: ignore[arg-type]  # called like the class that it makes
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
        self._server = _Server(self._config)
        self._serving: asyncio.Task[None] | None = None
        self.port = port

    async def open(self) -> None:
        """Listen. ConfigError where nobody can listen there."""
        listening = _bound(self._host, self._port)
        self.port = int(listening.getsockname()[1])
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")
        await asyncio.wait(
            (self._serving, asyncio.ensure_future(self._server.listening.wait())),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self._serving.done():
            listening.close()
            self._serving.result()

    async def drain(self, seconds: float) -> None:
        """Take no more connections, let requests end; what lasts longer than `seconds` is cut off."""
        if self._serving is None:
            return
        # uvicorn gives it to asyncio.wait_for, which takes fractions.
        self._config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.leave()
        await asyncio.wait((self._serving,))
        state = self._server.server_state
        for task in state.tasks:
            task.cancel()
        if state.tasks:
            # Each still tells its caller.
            await asyncio.wait(list(state.tasks), timeout=_LAST_WORDS_SECONDS)
        for connection in list(state.connections):
            connection.transport.abort()
        self._serving.result()
        self._serving = None

    async def close(self) -> None:
        """Stop, at once."""
        self._server.force_exit = True
        await self.drain(_LAST_WORDS_SECONDS)

    def _protocol(self, *args: Any, **kwargs: Any) -> asyncio.Protocol:
        return _Protocol(*args, header_seconds=self._header_seconds, **kwargs)


class _Server(uvicorn.Server):
    """uvicorn without signals and without its loop of ten looks a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin the graceful stop."""
        self._leaving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's own business."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Until leave(); once a second the Date header is renewed."""
        while not self._leaving.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), 1)


class _Protocol(HttpToolsProtocol):
    """One connection, with limits to the time and size of headers, for which uvicorn has none.

    The clock runs while bytes have come that make no whole header yet, and while the rest of a refused body is read
    and dropped (closing at once would lose the answer on its way). The application minds its own bodies.
    """

    def __init__(self, *args: Any, header_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_seconds = header_seconds
        self._clock: asyncio.TimerHandle | None = None
        self._in_header = False
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; note the certificate of the other side, for whoever decides on access."""
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert")
        if certificate:
            self.app_state = {**self.app_state, "peer_certificate": certificate}
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start or stop the clock, by whether the application is at work."""
        super().data_received(data)
        self._header_bytes = self._header_bytes + len(data) if self._in_header else 0
        if self._header_bytes > _MAX_HEADER_BYTES:
            self.transport.abort()
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work or self.transport.is_closing():
            self._stop_clock()
        elif self._clock is None:
            self._start_clock()

    def on_message_begin(self) -> None:
        """A header begins."""
        self._in_header = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A header is whole."""
        self._in_header = False
        super().on_headers_complete()

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(self._header_seconds, self._late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        self.transport.abort()


def _bound(host: str, port: int) -> socket.socket:
    listening: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        if listening is not None:
            listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listening
