"""/healthz and /readyz over HTTP. Knows two questions and who answers them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from services.common.errors import ConfigError


class HealthServer:
    """`alive`: the process works; `ready`: its caches are filled. Both give what is wrong, or nothing."""

    def __init__(self, host: str, port: int, *, alive: Callable[[], str], ready: Callable[[], str]) -> None:
        answers = {"/healthz": alive, "/livez": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ask = answers.get(self.path.partition("?")[0])
                wrong = "" if ask is None else ask()
                self.send_response(404 if ask is None else (503 if wrong else 200))
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.end_headers()
                self.wfile.write((wrong or ("ok" if ask else "not found")).encode() + b"\n")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
                """A probe every few seconds is no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot serve health on {host}:{port}: {error.strerror}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
