"""HTTP/1.1 on loopback, as little as clients of Kubernetes need, since objects come and go by the ten thousand.

Knows no Kubernetes. One thread per connection; connections are kept; an answer is a body or a stream of chunks.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

_REASONS = {200: "OK", 201: "Created", 202: "Accepted", 400: "Bad Request", 404: "Not Found", 409: "Conflict"}
MAX_BODY = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Request:
    """What came. Header names are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back. `stream`: chunks, sent as they come; a None among them cuts the connection."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stream: Iterator[bytes | None] | None = None


Answering = Callable[[Request], Reply]


class Cut(Exception):
    """Close the connection without an answer."""


def _read_request(stream: BinaryIO) -> Request | None:
    """The next request; None at the end of the connection."""
    line = stream.readline(65_536).decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (row := stream.readline(65_536)) not in (b"\r\n", b"\n", b""):
        name, _, value = row.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b"".join(_chunks(stream))
    else:
        length = int(headers.get("content-length", 0))
        if length > MAX_BODY:
            return None
        body = stream.read(length) if length else b""
    target = urlsplit(line[1])
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    return Request(line[0], unquote(target.path), query, headers, body)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while size := int(stream.readline(1024).split(b";")[0] or b"0", 16):
        yield stream.read(size)
        stream.readline(8)
    stream.readline(8)


def _head(status: int, headers: dict[str, str]) -> bytes:
    rows = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    rows += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(rows) + "\r\n\r\n").encode("latin-1")


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        server: Any = self.server
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, ValueError, Cut), self.request.makefile("rb") as stream:
            while (request := _read_request(stream)) is not None:
                self._send(server.answering(request))

    def _send(self, reply: Reply) -> None:
        headers = {"Content-Type": "application/json"} | reply.headers
        if reply.stream is None:
            head = _head(reply.status, headers | {"Content-Length": str(len(reply.body))})
            self.request.sendall(head + reply.body)
            return
        self.request.sendall(_head(reply.status, headers | {"Transfer-Encoding": "chunked"}))
        try:
            for chunk in reply.stream:
                if chunk is None:
                    raise Cut
                if chunk:  # an empty one would end the stream
                    self.request.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        finally:
            if isinstance(reply.stream, Generator):
                reply.stream.close()
        self.request.sendall(b"0\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    """Listens on a port of its own until it is stopped; then every connection is closed."""

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Connection)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="kube-http", daemon=True
        )

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse new ones, close those that are open."""
        self.shutdown()
        self.server_close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """Close all connections that are open."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Of socketserver: one connection, from beginning to end."""
        with self._lock:
            self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of socketserver, which would print; an error in answering is answered, so none is expected here."""
