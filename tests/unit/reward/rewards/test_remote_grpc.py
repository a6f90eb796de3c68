"""What another service's refusals over gRPC mean here, told by a real server on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from services.common.errors import Mismatch, Unavailable
from services.reward.config import RemoteSpec
from services.reward.rewards.base import ScoreRow
from services.reward.rewards.calling import TryAgain
from services.reward.rewards.remote_grpc import GrpcTransport
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc

ROW = ScoreRow(messages=(), completion="a")


class Refusing(reward_pb2_grpc.RewardServiceServicer):
    """Ends every call with `code`."""

    code = grpc.StatusCode.CANCELLED

    def Score(self, request: wire.ScoreRequest, context: Any) -> wire.ScoreResponse:
        context.abort(self.code, "no")
        raise AssertionError


@pytest.fixture
def refusing() -> Refusing:
    return Refusing()


@pytest.fixture
def transport(refusing: Refusing) -> Iterator[GrpcTransport]:
    server = grpc.server(ThreadPoolExecutor(1))
    reward_pb2_grpc.add_RewardServiceServicer_to_server(refusing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    opened = GrpcTransport(RemoteSpec.model_validate({"url": f"grpc://127.0.0.1:{port}"}))
    yield opened
    opened.close()
    server.stop(None)


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
def test_a_service_that_goes_away_is_worth_another_attempt(
    transport: GrpcTransport, refusing: Refusing, code: grpc.StatusCode
) -> None:
    """A call that a shutdown cancelled is UNAVAILABLE like one that found nobody: its group comes again."""
    refusing.code = code
    with pytest.raises(TryAgain) as caught:
        transport.score([ROW], "m", "", time.monotonic() + 20)
    assert isinstance(caught.value.error, Unavailable)


def test_a_refusal_is_final(transport: GrpcTransport, refusing: Refusing) -> None:
    """What no other attempt can mend is an error of ours at once."""
    refusing.code = grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(Mismatch):
        transport.score([ROW], "m", "", time.monotonic() + 20)
