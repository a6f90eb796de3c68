"""Channels from one service to another: plaintext, TLS, certificates, keys; a bridge to a guarded reward model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from services.common.access.keys import new_key
from services.common.channels import make_channel
from services.common.errors import ConfigError, InvalidInput
from services.common.server import serving
from services.common.spec.channel import ChannelSpec
from services.reward.application import RewardApplication
from services.reward.config import RemoteSpec, RewardConfig
from services.reward.rewards.base import Caller, ScoreRow
from services.reward.rewards.remote import RemoteReward
from tests.fakes.certificates import Authority
from tests.integration.access.guarded import App, Keys, spec
from trimtab.reward.v1 import reward_pb2, reward_pb2_grpc
from trimtab.weights.v1 import weights_pb2, weights_pb2_grpc

ROW = ScoreRow(messages=(("user", "q"),), completion="three words here", columns={})


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def written(path: Path, text: str) -> Path:
    path.write_text(f"{text}\n")
    return path


async def caller(address: str, channel: ChannelSpec | None = None) -> str:
    """The name under which the other side knows us; over a stream it must know us too."""
    async with make_channel(address, channel or ChannelSpec()) as opened:
        weights: Any = weights_pb2_grpc.WeightServiceStub(opened)
        async for _ in weights.WatchVersions(weights_pb2.WatchVersionsRequest(), timeout=20):
            break
        reward: Any = reward_pb2_grpc.RewardServiceStub(opened)
        request = reward_pb2.ScoreRequest(model="hh", inputs=[reward_pb2.ScoreInput(completion="c")])
        answer = await reward.Score(request, timeout=20)
    return str(answer.scores[0].model)


async def refused(address: str, channel: ChannelSpec) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller(address, channel)
    return caught.value.code()


async def test_plaintext_is_what_it_is_without_settings() -> None:
    """As between the services of one machine, or of a run."""
    async with serving(spec(), App()) as endpoints:
        assert await caller(endpoints.grpc) == ""


async def test_a_key_goes_along_with_calls_and_streams(
    keys: Keys, authority: Authority, tmp_path: Path
) -> None:
    """From its file, which may change while the channel is open."""
    first = keys.add("first", scopes=["score", "weights"])
    second = keys.add("second", scopes=["score", "weights"])
    file = written(tmp_path / "key", first)
    channel = ChannelSpec(ca_file=authority.file, key_file=file)
    async with serving(spec(keys, authority), App()) as endpoints:
        assert await caller(endpoints.grpc, channel) == "first"
        written(file, second)
        assert await caller(endpoints.grpc, channel) == "second"
        nobody = ChannelSpec(ca_file=authority.file)
        assert await refused(endpoints.grpc, nobody) is grpc.StatusCode.UNAUTHENTICATED
        wrong = ChannelSpec(ca_file=authority.file, key_file=written(tmp_path / "wrong", new_key()))
        assert await refused(endpoints.grpc, wrong) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_certificate_of_our_own_where_one_is_asked_for(
    keys: Keys, authority: Authority, tmp_path: Path
) -> None:
    """mTLS and a key together; without the certificate nobody answers."""
    file = written(tmp_path / "key", keys.add("bridge", scopes=["score", "weights"]))
    pair = authority.client("bridge")
    whole = ChannelSpec(
        ca_file=authority.file,
        certificate_file=pair.certificate,
        private_key_file=pair.private_key,
        key_file=file,
    )
    async with serving(spec(keys, authority, mtls=True), App()) as endpoints:
        assert await caller(endpoints.grpc, whole) == "bridge"
        without = ChannelSpec(ca_file=authority.file, key_file=file)
        assert await refused(endpoints.grpc, without) is grpc.StatusCode.UNAVAILABLE


async def test_a_name_is_held_on_to_where_an_address_says_nothing(authority: Authority) -> None:
    """server_name is what the certificate must be made out to, whatever the address; another's is refused."""
    named = ChannelSpec(ca_file=authority.file, server_name="localhost")
    another = ChannelSpec(ca_file=authority.file, server_name="learner")
    async with serving(spec(None, authority), App()) as endpoints:
        assert await caller(endpoints.grpc, named) == ""
        assert await refused(endpoints.grpc, another) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"key_file": "key"}, "must not travel in the clear"),
        ({"server_name": "learner"}, "without TLS nobody looks at it"),
        (
            {"certificate_file": "a.pem", "ca_file": "ca.pem"},
            "certificate_file and private_key_file together",
        ),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, str], told: str) -> None:
    """Refused when the configuration is read."""
    with pytest.raises(ValidationError, match=told):
        ChannelSpec.model_validate(fields)


async def test_a_file_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    """With the address that the channel was for."""
    missing = ChannelSpec(ca_file=tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match=r"channel to host:1: .*nowhere\.pem"):
        async with make_channel("host:1", missing):
            pass


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
async def test_a_bridge_reaches_a_reward_model_behind_mtls_and_a_key(
    keys: Keys, authority: Authority, tmp_path: Path, scheme: str
) -> None:
    """The remote source of a run's bridge worker, over both wires; without its certificate it does not open."""
    file = written(tmp_path / "key", keys.add("run"))
    server, client = authority.server(), authority.client("run")
    config = RewardConfig.model_validate(
        {
            "models": [{"name": "hh", "rule": "length"}],
            "server": {"http_port": 0},
            "access": {"keys_file": keys.path},
            "tls": {
                "certificate": server.certificate,
                "private_key": server.private_key,
                "client_ca": authority.file,
            },
        }
    )
    async with serving(config, RewardApplication(config)) as endpoints:
        address = endpoints.grpc if scheme == "grpcs" else endpoints.http
        remote: dict[str, Any] = {
            "url": f"{scheme}://{address}",
            "model": "hh",
            "key_file": file,
            "ca_file": authority.file,
            "timeout_seconds": 20,
            "attempts": 1,
        }
        whole = remote | {"certificate_file": client.certificate, "private_key_file": client.private_key}
        source = await asyncio.to_thread(RemoteReward, RemoteSpec.model_validate(whole))
        try:
            [outcome] = await asyncio.wrap_future(source.submit([ROW], Caller()))
        finally:
            await asyncio.to_thread(source.close)
        assert outcome.value is not None
        assert outcome.error is None
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            await asyncio.to_thread(RemoteReward, RemoteSpec.model_validate(remote))


def test_a_certificate_without_its_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    """By the configuration where one is left out, by the source where they do not fit."""
    pair, other = authority.client("a", "a"), authority.client("b", "b")
    remote = {"url": "https://127.0.0.1:9", "certificate_file": pair.certificate}
    with pytest.raises(ValidationError, match="certificate_file and private_key_file together"):
        RemoteSpec.model_validate(remote)
    mixed = RemoteSpec.model_validate(remote | {"private_key_file": other.private_key})
    with pytest.raises(InvalidInput, match="expected a certificate and its private key"):
        RemoteReward(mixed)
