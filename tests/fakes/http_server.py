"""A small real HTTP server on loopback that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """What came. `content` is the body as JSON."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: Any


@dataclass(frozen=True)
class Reply:
    """What goes back; bytes as they are, anything else as JSON."""

    content: Any = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        """The content as bytes."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


# Makes a reply, or writes to the connection itself and returns None.
Answering = Callable[[Request, BaseHTTPRequestHandler], Reply | None]


class HttpServer:
    """Serves in threads until the `with` ends. `requests` are those that came, in order."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                content = json.loads(raw) if raw else None
                request = Request(self.command, self.path, dict(self.headers.items()), content)
                server.requests.append(request)
                try:
                    reply = server.answering(request, self)
                    if reply is not None:
                        self._reply(reply)
                except OSError:  # the client has gone
                    self.close_connection = True

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def _reply(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in (*reply.headers, ("content-length", str(len(reply.body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no longer; the port refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def in_turn(*replies: Reply) -> Answering:
    """One reply after the other; the last one again and again."""
    left = list(replies)

    def answer(request: Request, handler: BaseHTTPRequestHandler) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer
