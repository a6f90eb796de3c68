"""The HTTP server on a real socket: ports, limits, slow and rude clients, draining, TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common.errors import ConfigError, Unavailable
from services.common.http_guard import BodyReader, HttpGuard, HttpLimits, Receive, Scope, Send
from services.common.http_server import HttpServer
from services.common.http_status import HttpRefusal

Answer = Callable[[Scope, bytes], Awaitable[bytes]]


class Application:
    """Reads a body, answers by `work`."""

    def __init__(self, work: Answer, limits: HttpLimits) -> None:
        self._work = work
        self._bodies = BodyReader(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        if scope["method"] == "POST":
            async with self._bodies.body(scope, receive) as raw:
                body = raw
        answer = await self._work(scope, body)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


async def echo(scope: Scope, body: bytes) -> bytes:
    return body or b"nothing"


@asynccontextmanager
async def listening(
    work: Answer = echo, limits: HttpLimits | None = None, **options: Any
) -> AsyncIterator[HttpServer]:
    limits = limits or HttpLimits()
    server = HttpServer(HttpGuard(Application(work, limits), limits), "127.0.0.1", 0, **options)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


def client_of(server: HttpServer, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20, **options)


JSON = {"content-type": "application/json"}


async def test_serves_and_stops() -> None:
    """Requests are answered on one connection; after close() nobody listens."""
    async with listening() as server:
        async with client_of(server) as client:
            for _ in range(3):
                assert (await client.post("/x", content=b"{}", headers=JSON)).content == b"{}"
        port = server.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_in_use_is_one_clear_line() -> None:
    """And so is an address that is not of this machine."""
    async with listening() as server:
        with pytest.raises(ConfigError, match=f"^port {server.port} is in use$"):
            await HttpServer(echo, "127.0.0.1", server.port).open()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^cannot listen on 192\.0\.2\.1:0: "):
        await HttpServer(echo, "192.0.2.1", 0).open()  # type: ignore[arg-type]


async def test_the_refused_body_is_read_to_its_end_by_nobody() -> None:
    """A body of 100 MB is answered with 413 before it has come; the same connection is of no further harm."""
    async with listening(limits=HttpLimits(body_bytes=1 << 20)) as server, client_of(server) as client:
        response = await client.post("/x", content=b" " * 100_000_000, headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert (await client.post("/x", content=b"{}", headers=JSON)).status_code == 200


async def test_expect_continue_is_refused_without_a_body() -> None:
    """A client that asks first is told 413 before it sends anything."""
    async with listening(limits=HttpLimits(body_bytes=10)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 99\r\nexpect: 100-continue\r\n\r\n"
        )
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


@pytest.mark.parametrize("begin", [b"", b"POST / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-long: "])
async def test_headers_that_never_end(begin: bytes) -> None:
    """A connection that does not finish its request is ended."""
    async with listening(header_seconds=0.05) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begin)
        async with asyncio.timeout(10):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.close()


async def test_headers_without_bound() -> None:
    """A header of megabytes ends the connection instead of filling the memory."""
    async with listening() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(10):
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ")
                while True:
                    writer.write(b"y" * 65536)
                    await writer.drain()
        del reader
        writer.close()


async def test_a_slow_request_is_not_a_slow_header() -> None:
    """The clock of headers does not run while the application works, nor while it reads a body."""
    begun = asyncio.Event()

    async def slow(scope: Scope, body: bytes) -> bytes:
        begun.set()
        await asyncio.sleep(0.2)
        return body

    async with listening(slow, header_seconds=0.05) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{"
        )
        await asyncio.sleep(0.2)
        writer.write(b"}")
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_body_that_never_ends() -> None:
    """What does not arrive in time is 408."""
    async with listening(limits=HttpLimits(body_seconds=0.05)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_large_bodies_of_many_share_their_room() -> None:
    """Beyond four bodies of the largest size at once the next is 429; when they are gone there is room again."""
    limits = HttpLimits(body_bytes=1000)
    async with listening(limits=limits) as server, client_of(server) as client:
        halves = []
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
            writer.write(head + b" " * 999)
            halves.append(writer)
        statuses: list[int] = []

        async def asked() -> int:
            statuses.append((await client.post("/", content=b" " * 100, headers=JSON)).status_code)
            return statuses[-1]

        async with asyncio.timeout(20):
            while await asked() != 429:
                pass
            for writer in halves:
                writer.close()
            while await asked() != 200:
                pass
    assert set(statuses) <= {200, 429}


async def test_draining_lets_requests_end() -> None:
    """What was asked before drain() is answered; new connections are refused meanwhile."""
    begun, finish = asyncio.Event(), asyncio.Event()

    async def waiting(scope: Scope, body: bytes) -> bytes:
        begun.set()
        await finish.wait()
        return b"done"

    async with listening(waiting) as server, client_of(server) as client:
        asked = asyncio.ensure_future(client.get("/"))
        async with asyncio.timeout(20):
            await begun.wait()
            draining = asyncio.ensure_future(server.drain(20))
            with pytest.raises(OSError):
                while True:
                    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    writer.close()
            finish.set()
            response = await asked
            await draining
    assert (response.status_code, response.content) == (200, b"done")


async def test_draining_is_bounded() -> None:
    """What lasts longer is told 503, in the one form of errors, and drain() returns."""
    begun = asyncio.Event()

    async def for_ever(scope: Scope, body: bytes) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    async with listening(for_ever) as server, client_of(server) as client:
        asked = asyncio.ensure_future(client.get("/"))
        async with asyncio.timeout(20):
            await begun.wait()
            await server.drain(0.05)
            response = await asked
    assert response.status_code == 503
    assert json.loads(response.content)["error"]["code"] == "UNAVAILABLE"


async def test_errors_that_an_application_lets_out_are_answered() -> None:
    """Ours with their status, others as incidents; never the server's own page."""
    raised: list[Exception] = []

    async def failing(scope: Scope, body: bytes) -> bytes:
        raise raised[0]

    async with listening(failing) as server, client_of(server) as client:
        for error, status in (
            (Unavailable("m"), 503),
            (HttpRefusal(405, "UNIMPLEMENTED", "m", (("allow", "GET"),)), 405),
            (RuntimeError("secret"), 500),
        ):
            raised[:] = [error]
            response = await client.get("/")
            assert response.status_code == status
            assert set(response.json()["error"]) == {"code", "message", "violations"}
            assert "secret" not in response.text


async def test_what_is_no_http_is_refused() -> None:
    """Another protocol on the port ends its own connection alone."""
    async with listening() as server, client_of(server) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01 hello \x00\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ") or not answer
        writer.close()
        assert (await client.get("/")).status_code == 200


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, made by openssl."""
    import subprocess

    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
            "-days",
            "2",
            "-subj",
            "/CN=trainer-1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_tls_and_the_certificate_of_the_other_side(tmp_path: Path) -> None:
    """With a context it is https; a client's verified certificate reaches the application."""
    certificate, key = _self_signed(tmp_path)
    seen: list[Any] = []

    async def note(scope: Scope, body: bytes) -> bytes:
        seen.append(scope["state"].get("peer_certificate"))
        return b"ok"

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    trusting = ssl.create_default_context(cafile=str(certificate))
    showing = ssl.create_default_context(cafile=str(certificate))
    showing.load_cert_chain(certificate, key)
    async with listening(note, tls=context) as server:
        for client_context in (trusting, showing):
            async with httpx.AsyncClient(verify=client_context, timeout=20) as client:
                assert (await client.get(f"https://127.0.0.1:{server.port}/")).content == b"ok"
    assert seen[0] is None
    assert seen[1]["subject"] == ((("commonName", "trainer-1"),),)


async def test_ipv6() -> None:
    """An IPv6 loopback is an address like another, where the machine has one."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = HttpServer(HttpGuard(Application(echo, HttpLimits()), HttpLimits()), "::1", 0)
    try:
        await server.open()
    except ConfigError:
        pytest.skip("no IPv6 loopback here")
    async with httpx.AsyncClient(timeout=20) as client:
        assert (await client.get(f"http://[::1]:{server.port}/")).status_code == 200
    await server.close()
