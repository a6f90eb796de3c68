"""An error that comes when its caller has gone already."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc
import pytest
from prometheus_client import REGISTRY

from services.common.errors import Expired
from services.common.server import serving
from services.common.spec.service import ServiceSpec
from trimtab.learner.v1 import learner_pb2 as learner
from trimtab.learner.v1 import learner_pb2_grpc as learner_grpc


class Late(learner_grpc.LearnerServiceServicer):
    """Fails at the moment that its caller's deadline ends the call."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()

    async def GetRunStatus(
        self, request: learner.GetRunStatusRequest, context: object
    ) -> learner.GetRunStatusResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.failed.set()
            raise Expired("no answer within the deadline") from None
        raise AssertionError("unreachable")


class LateApplication:
    name = "learner"

    def __init__(self) -> None:
        self.servicer = Late()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        learner_grpc.add_LearnerServiceServicer_to_server(self.servicer, server)
        return ["trimtab.learner.v1.LearnerService"]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """Nothing to hand back."""

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0


def expired() -> float:
    labels = {"method": "trimtab.learner.v1.LearnerService/GetRunStatus", "code": "DEADLINE_EXCEEDED"}
    return REGISTRY.get_sample_value("trimtab_grpc_calls_total", labels) or 0.0


async def test_an_error_after_the_deadline_is_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """Found by fuzzing: grpcio logged its own error, with a trace, for a status that nobody waits for any more."""
    application = LateApplication()
    before = expired()
    with caplog.at_level(logging.DEBUG):
        async with (
            serving(ServiceSpec(), application) as endpoints,
            grpc.aio.insecure_channel(endpoints.grpc) as channel,
        ):
            stub = learner_grpc.LearnerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetRunStatus(learner.GetRunStatusRequest(), timeout=0.3)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await asyncio.wait_for(application.servicer.failed.wait(), 30)
    assert expired() == before + 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
