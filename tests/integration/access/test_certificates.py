"""TLS and mTLS over real loopback gRPC, and certificates that rotate while serving."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.access.credentials import name_in_certificate
from services.common.access.tls import TlsFiles
from services.common.server import serving
from services.common.spec.service import TlsSpec
from tests.fakes.certificates import Authority, Pair
from tests.integration.access.guarded import (
    REWARD,
    SERVING,
    App,
    Keys,
    score,
    spec,
)
from tests.integration.server.served import health_of
from trimtab import AsyncLearnerClient, AsyncRewardClient, LearnerClient, RewardClient
from trimtab.clients.errors import (
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from trimtab.reward.v1 import reward_pb2


async def test_tls_serves_those_who_trust_it(keys: Keys, authority: Authority, tmp_path: Path) -> None:
    """With TLS on, plaintext and foreign trust fail, and a client with the authority's file gets in."""
    good = keys.add()
    stranger = Authority(tmp_path, "stranger")
    async with serving(spec(keys, authority), App()) as endpoints:
        assert await score(endpoints.grpc, key=good, ca_file=authority.file) == "trainer"
        with RewardClient(endpoints.grpc, key=good, ca_file=authority.file) as client:
            [answer] = await asyncio.to_thread(client.score, [reward_pb2.ScoreInput(completion="c")])
        assert answer.model == "trainer"
        for access in ({}, {"tls": True}, {"ca_file": stranger.file}):
            with pytest.raises(UnavailableError):
                await score(endpoints.grpc, key=good, **access)
        assert await health_of(endpoints.health) == SERVING


async def test_mtls_turns_away_who_has_no_certificate(authority: Authority, tmp_path: Path) -> None:
    """A client authority asks every client for a certificate of its own; its common name is who calls."""
    client = authority.client("learner")
    foreign = Authority(tmp_path, "foreign").client("learner", "foreign-client")
    async with serving(spec(None, authority, mtls=True), App()) as endpoints:
        for access in ({}, pair_of(foreign)):
            with pytest.raises(UnavailableError):
                await score(endpoints.grpc, ca_file=authority.file, **access)
        assert await score(endpoints.grpc, ca_file=authority.file, **pair_of(client)) == "learner"
        async with AsyncRewardClient(endpoints.grpc, ca_file=authority.file, **pair_of(client)) as admin:
            with pytest.raises(PermissionDeniedError, match="learner lacks the scope admin"):
                await admin.unload_model("hh")


async def test_certificates_can_be_written_down_like_keys(keys: Keys, authority: Authority) -> None:
    """With a keys file beside mTLS, a certificate alone gets in only where the file names it, with its scopes."""
    keys.path.write_text('[[certificates]]\nname = "learner"\nscopes = ["admin"]\n')
    keys.path.chmod(0o600)
    good = keys.add("trainer")
    learner, other = authority.client("learner"), authority.client("other", "other")
    async with serving(spec(keys, authority, mtls=True), App()) as endpoints:
        trusted: dict[str, Any] = {"ca_file": authority.file}
        async with AsyncRewardClient(endpoints.grpc, **trusted, **pair_of(learner)) as client:
            await client.unload_model("hh")
        with pytest.raises(PermissionDeniedError, match="lacks the scope score"):
            await score(endpoints.grpc, **trusted, **pair_of(learner))
        with pytest.raises(UnauthenticatedError, match="other is not in the keys file"):
            await score(endpoints.grpc, **trusted, **pair_of(other))
        assert await score(endpoints.grpc, key=good, **trusted, **pair_of(other)) == "trainer"


def pair_of(pair: Pair) -> dict[str, Any]:
    return {"certificate_file": pair.certificate, "private_key_file": pair.private_key}


def served_certificate(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=20)


async def test_the_servers_certificate_rotates_without_a_dropped_call(
    keys: Keys, authority: Authority
) -> None:
    """New connections see the new certificate, a call in progress ends well, a broken file changes nothing."""
    good, app = keys.add(), App()
    async with serving(spec(keys, authority), app) as endpoints:
        before = await asyncio.to_thread(served_certificate, endpoints.grpc)
        app.reward.release.clear()
        running = asyncio.ensure_future(score(endpoints.grpc, key=good, ca_file=authority.file))
        await asyncio.wait_for(app.reward.entered.wait(), 20)
        pair = authority.server()
        after = await asyncio.to_thread(served_certificate, endpoints.grpc)
        assert after != before
        assert after.strip() in pair.certificate.read_text()
        app.reward.release.set()
        assert await running == "trainer"
        pair.certificate.write_text("broken")
        assert await asyncio.to_thread(served_certificate, endpoints.grpc) == after
        assert await score(endpoints.grpc, key=good, ca_file=authority.file) == "trainer"


async def test_clients_certificates_rotate_without_a_dropped_call(authority: Authority) -> None:
    """A client, blocking or asyncio, calls under its new certificate from the next call on; one in progress
    and a stream in progress end well on the old."""
    app = App()
    pair = authority.client("first")
    options: dict[str, Any] = {"ca_file": authority.file, **pair_of(pair)}
    rows = [reward_pb2.ScoreInput(completion="c")]
    async with serving(spec(None, authority, mtls=True), app) as endpoints:
        with ExitStack() as stack:
            blocking = stack.enter_context(RewardClient(endpoints.grpc, **options))
            watcher = stack.enter_context(LearnerClient(endpoints.grpc, **options))
            async with (
                AsyncRewardClient(endpoints.grpc, **options) as client,
                AsyncLearnerClient(endpoints.grpc, **options) as async_watcher,
            ):
                app.reward.release.clear()
                running = [
                    asyncio.ensure_future(client.score(rows)),
                    asyncio.ensure_future(asyncio.to_thread(blocking.score, rows)),
                ]
                stream, async_stream = watcher.watch_versions("run"), async_watcher.watch_versions("run")
                await asyncio.to_thread(next, stream)
                await anext(async_stream)
                await asyncio.wait_for(app.reward.entered.wait(), 20)
                await until_in_flight(2)
                authority.client("second")
                app.reward.release.set()
                for name in ("first", "second"):
                    assert [(await answer)[0].model for answer in running] == [name, name]
                    running = [
                        asyncio.ensure_future(client.score(rows)),
                        asyncio.ensure_future(asyncio.to_thread(blocking.score, rows)),
                    ]
                await asyncio.gather(*running)
                app.weights.release.set()
                assert len(await asyncio.to_thread(list, stream)) == 1
                assert len([message async for message in async_stream]) == 1


async def until_in_flight(calls: int) -> None:
    """Return when the service works on so many Score calls; fails after 20 seconds."""
    from services.common.telemetry import CALLS_IN_FLIGHT

    async with asyncio.timeout(20):
        while CALLS_IN_FLIGHT.labels(f"{REWARD}/Score")._value.get() < calls:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_http_is_offered_the_same_certificates(authority: Authority) -> None:
    """The context for asyncio and uvicorn asks for client certificates, tells their names, and rotates."""
    client, server = authority.client("learner"), authority.server()
    tls = TlsFiles(
        TlsSpec(certificate=server.certificate, private_key=server.private_key, client_ca=authority.file)
    )
    names: list[str | None] = []

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.append(name_in_certificate(writer.get_extra_info("ssl_object").getpeercert()))
        writer.write(b"hello")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=tls.ssl_context())
    port = listener.sockets[0].getsockname()[1]

    async def ask(context: ssl.SSLContext) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            return writer.get_extra_info("ssl_object").getpeercert(True), await reader.read()
        finally:
            writer.close()

    trusting = ssl.create_default_context(cafile=authority.file)
    # With TLS 1.3 a client hears only after its handshake that it was turned away.
    with suppress(ssl.SSLError, ConnectionError):
        assert (await ask(trusting))[1] == b""
    assert names == []
    trusting.load_cert_chain(client.certificate, client.private_key)
    first, answer = await ask(trusting)
    authority.server()
    second, _ = await ask(trusting)
    listener.close()
    await listener.wait_closed()
    assert answer == b"hello"
    assert first != second
    assert names == ["learner", "learner"]
