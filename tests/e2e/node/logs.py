"""What `kubectl logs` asks a kubelet: /containerLogs over TLS with a certificate of its own. Serves nothing else.

No client certificate is asked for: it listens on loopback, and which authority an API server's is signed by differs
from control plane to control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trustme

Find = Callable[[str, str, str, bool], Path | None]
"""(namespace, pod, container, previous): the file."""
PAUSE_SECONDS = 0.3


async def serve(find: Find, address: str, port: int, *, tls: bool = True) -> asyncio.Server:
    """Answer until closed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError
        ):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            await _respond(head.split(b" ", 2)[1].decode(), find, writer)
        with contextlib.suppress(OSError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    return await asyncio.start_server(answer, address, port, ssl=_certificate(address) if tls else None)


async def _respond(target: str, find: Find, writer: asyncio.StreamWriter) -> None:
    url = urlsplit(target)
    options = {key: values[-1] for key, values in parse_qs(url.query).items()}
    parts = url.path.strip("/").split("/")
    path = None
    if len(parts) == 4 and parts[0] == "containerLogs":
        path = find(parts[1], parts[2], parts[3], options.get("previous") == "true")
    if path is None or not path.exists():
        writer.write(
            b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nno such log\n"
        )
        await writer.drain()
        return
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n")
    with path.open("rb") as log:
        content = log.read()
        writer.write(last_lines(content, int(options["tailLines"]) if "tailLines" in options else None))
        await writer.drain()
        while options.get("follow") == "true" and find(parts[1], parts[2], parts[3], False) == path:
            await asyncio.sleep(PAUSE_SECONDS)
            writer.write(log.read())
            await writer.drain()


def last_lines(content: bytes, count: int | None) -> bytes:
    """The last `count` lines; None: all."""
    if count is None:
        return content
    return b"".join(content.splitlines(keepends=True)[-count:]) if count else b""


def _certificate(address: str) -> ssl.SSLContext:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(address).configure_cert(context)
    return context
