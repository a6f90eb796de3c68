"""A reward service in this process that a test can stop, start again on its port, hold up and let fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest

from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as reward
from trimtab.reward.v1 import reward_pb2_grpc as reward_grpc


class FakeReward(reward_grpc.RewardServiceServicer):
    """The value of a row is the length of its answer; an answer "bad" has an error instead."""

    def __init__(self) -> None:
        self.requests: list[reward.ScoreRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.failures: list[grpc.StatusCode] = []
        # Closed, it holds calls up.
        self.gate = threading.Event()
        self.gate.set()
        self._server: grpc.Server | None = None
        self.port = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        reward_grpc.add_RewardServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def Score(self, request: reward.ScoreRequest, context: grpc.ServicerContext) -> reward.ScoreResponse:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self.gate.wait(20)
        if self.failures:
            code = self.failures.pop(0)
            context.abort(code, code.name.lower())
        return reward.ScoreResponse(scores=[self._score(row) for row in request.inputs])

    def _score(self, row: reward.ScoreInput) -> common.Score:
        answer = row.messages[-1].content if row.messages else row.completion
        if answer == "bad":
            return common.Score(error=common.ErrorInfo(code="INVALID_ARGUMENT", message="a bad answer"))
        return common.Score(value=float(len(answer)), components={"length": float(len(answer))})


@pytest.fixture
def fake() -> Iterator[FakeReward]:
    service = FakeReward()
    service.start()
    yield service
    service.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Waits for a condition, at most 20 seconds."""

    def wait(condition: Callable[[], object]) -> None:
        ends = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends, "what was waited for did not happen"
            time.sleep(0.005)

    return wait
