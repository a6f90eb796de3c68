"""Keys and certificates of the clients, on whatever grpcio is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from trimtab.clients.access import KEY_VARIABLE, Access, is_local
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as reward
from trimtab.reward.v1 import reward_pb2_grpc as reward_grpc

KEY = "tt_" + "0123456789abcdef" * 4
ROWS = [reward.ScoreInput(completion="c")]


class Echo(reward_grpc.RewardServiceServicer):
    """Answers with the caller's key and certificate's name."""

    def Score(self, request: reward.ScoreRequest, context: grpc.ServicerContext) -> reward.ScoreResponse:
        key = dict(context.invocation_metadata()).get("authorization", "")
        name = b"".join(context.auth_context().get("x509_common_name", ())).decode()
        return reward.ScoreResponse(scores=[common.Score(value=1.0, model=str(key), model_digest=name)])


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    reward_grpc.add_RewardServiceServicer_to_server(Echo(), server)
    yield server
    server.stop(None)


@pytest.fixture
def address(server: grpc.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}"


def heard(target: Any, **options: Any) -> str:
    """What the service hears of the blocking client and, the same, of the asyncio client."""
    from trimtab import AsyncRewardClient, RewardClient

    async def over_asyncio() -> str:
        async with AsyncRewardClient(target, **options) as client:
            return (await client.score(ROWS))[0].model

    with RewardClient(target, **options) as client:
        blocking = client.score(ROWS)[0].model
    assert blocking == asyncio.run(over_asyncio())
    return blocking


def test_a_key_goes_along_as_bearer(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the keyword, from a file, from the environment, in this order; "" sends none."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}1\n")
    assert heard(address) == ""
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}2")
    assert heard(address) == f"Bearer {KEY}2"
    assert heard(address, key_file=file) == f"Bearer {KEY}1"
    assert heard(address, key=KEY) == f"Bearer {KEY}"
    assert heard(address, key="") == ""


def test_a_key_file_is_read_anew(address: str, tmp_path: Path) -> None:
    """A client follows its file; while that is gone, empty or wrong the old key goes along."""
    from trimtab import RewardClient

    file = tmp_path / "key"
    file.write_text(KEY)
    with RewardClient(address, key_file=file) as client:
        for content, sent in ((None, ""), ("", ""), ("two words", ""), (f"{KEY}1", "1")):
            if content is None:
                file.unlink()
            else:
                file.write_text(content)
            assert client.score(ROWS)[0].model == f"Bearer {KEY}{sent}"


def test_the_environments_key_does_not_go_over_a_foreign_channel(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel of the caller's own may be plaintext to anywhere; a key that is handed over goes."""
    from trimtab import RewardClient

    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with grpc.insecure_channel(address) as channel:
        assert RewardClient(channel).score(ROWS)[0].model == ""
        assert RewardClient(channel, key=KEY).score(ROWS)[0].model == f"Bearer {KEY}"
        with pytest.raises(ValueError, match="channel of your own"):
            RewardClient(channel, tls=True)


LOCAL = [
    "localhost:1",
    "127.0.0.1:1",
    "127.8.9.1:1",
    "[::1]:1",
    "::1",
    "dns:///localhost:1",
    "dns:127.0.0.1:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:1",
    "unix:/run/x",
    "unix:///run/x",
    "unix-abstract:x",
]
ELSEWHERE = [
    "reward:1",
    "10.0.0.1:1",
    "0.0.0.0:1",
    "[::2]:1",
    "dns:///reward:1",
    "dns://127.0.0.1/reward:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "xds:///localhost",
    "localhost.example:1",
    "127.0.0.1.example:1",
    "http://localhost:1",
    "",
]


@pytest.mark.parametrize("target", LOCAL)
def test_targets_of_this_machine(target: str) -> None:
    """Loopback, localhost and Unix sockets never leave the machine."""
    assert is_local(target)


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_key_is_not_sent_in_the_clear(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond this machine a key needs TLS, or the word that something else encrypts; without a key nothing does."""
    from trimtab import RewardClient

    assert not is_local(target)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(ValueError, match="in the clear") as caught:
        RewardClient(target)
    assert KEY not in str(caught.value)
    for options in ({"tls": True}, {"allow_plaintext": True}, {"key": ""}):
        Access(**options).check_target(target, secure="tls" in options)  # type: ignore[arg-type]


def test_a_proxy_is_not_asked_for_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy in the environment is for elsewhere: calls to loopback, and keys with them, stay here."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert heard(address, key=KEY) == f"Bearer {KEY}"


def test_options_that_contradict_each_other() -> None:
    """Half a pair, two keys, two kinds of credentials: told before anything connects."""
    from trimtab import RewardClient

    credentials = grpc.ssl_channel_credentials()
    for options in (
        {"certificate_file": "c.pem"},
        {"private_key_file": "c.key"},
        {"key": KEY, "key_file": "key"},
        {"tls": True, "credentials": credentials},
    ):
        with pytest.raises(ValueError, match=r"exclude|need each other"):
            RewardClient("127.0.0.1:1", **options)
    with pytest.raises(TypeError):
        RewardClient("127.0.0.1:1", kee=KEY)
    with pytest.raises(FileNotFoundError):
        RewardClient("127.0.0.1:1", ca_file="no/such/file")


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY} x", f"{KEY}\0", f"{KEY}é"])
def test_a_key_that_cannot_be_sent_is_not_printed(key: str, tmp_path: Path) -> None:
    """gRPC would refuse such metadata and print it; it is refused before, in words without it."""
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    for options in ({"key": key}, {"key_file": file}):
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            Access(**options)  # type: ignore[arg-type]
        assert KEY not in str(caught.value)


def test_nothing_of_a_client_shows_its_key() -> None:
    """Neither the client's repr nor its parts' do."""
    from trimtab import RewardClient

    with RewardClient("127.0.0.1:1", key=KEY) as client:
        assert KEY not in repr(client) + repr(vars(client)) + repr(vars(client._settings))


def test_a_client_follows_its_certificate(
    server: grpc.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocking and asyncio clients call under the certificate that their files hold at that time."""
    trustme = pytest.importorskip("trustme")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    authority = trustme.CA()
    files = {
        "ca_file": tmp_path / "ca",
        "certificate_file": tmp_path / "pem",
        "private_key_file": tmp_path / "key",
    }
    files["ca_file"].write_bytes(authority.cert_pem.bytes())

    def issue(name: str) -> Any:
        issued = authority.issue_cert("127.0.0.1", common_name=name)
        files["certificate_file"].write_bytes(issued.cert_chain_pems[0].bytes())
        files["private_key_file"].write_bytes(issued.private_key_pem.bytes())
        return issued

    own = issue("first")
    credentials = grpc.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), True
    )
    target = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    names = asyncio.run(_names(target, files, issue))
    assert names == ["first", "first", "second", "second", "second", "second"]


async def _names(target: str, files: Any, issue: Any) -> list[str]:
    from trimtab import AsyncRewardClient, RewardClient

    names = []
    with RewardClient(target, key=KEY, **files) as blocking:
        async with AsyncRewardClient(target, key=KEY, **files) as client:
            for change in (None, "second", "broken"):
                if change == "broken":
                    files["certificate_file"].write_bytes(b"broken")
                elif change:
                    issue(change)
                for scores in (await asyncio.to_thread(blocking.score, ROWS), await client.score(ROWS)):
                    assert scores[0].model == f"Bearer {KEY}"
                    names.append(scores[0].model_digest)
    return names
