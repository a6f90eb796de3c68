"""Real services of little content behind the real server bootstrap: what a Stack can start without torch.

    python -m tests.fakes.application --config FILE

Named `learner`, it answers GetRunStatus, one step further at each call, and ends after the last step; after a signal
before that, with its `cut_off_status`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from pydantic import ConfigDict

from services.common.entry import service_main
from services.common.spec.service import ServiceSpec
from trimtab.learner.v1 import learner_pb2 as learner
from trimtab.learner.v1 import learner_pb2_grpc as learner_grpc

STEPS = 3


class FakeConfig(ServiceSpec):
    """Whatever the orchestrator writes."""

    model_config = ConfigDict(extra="allow")
    cut_off_status: int = 0


class FakeApplication:
    """Serves health; as a learner its status, too."""

    def __init__(self, config: FakeConfig) -> None:
        self.name, self._cut_off_status = config.name, config.cut_off_status
        self._stepper = Stepper()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        if self.name != "learner":
            return []
        learner_grpc.add_LearnerServiceServicer_to_server(self._stepper, server)
        return ["trimtab.learner.v1.LearnerService"]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """Nothing to hand back."""

    def cut_off(self) -> int:
        return self._cut_off_status

    async def wait(self) -> int:
        await self._stepper.ended.wait()
        return 0


class Stepper(learner_grpc.LearnerServiceServicer):
    """A run that gets on when somebody looks."""

    def __init__(self) -> None:
        self.step = 0
        self.ended = asyncio.Event()

    async def GetRunStatus(self, request: Any, context: Any) -> learner.GetRunStatusResponse:
        self.step += 1
        if self.step >= STEPS:
            self.ended.set()
        return learner.GetRunStatusResponse(
            phase=learner.RUN_PHASE_TRAINING,
            step=self.step,
            total_steps=STEPS,
            rollouts=learner.RolloutCounts(admitted=8 * self.step, trained=8 * self.step),
            metrics={"objective/kl": 0.5},
            warnings=["no worker on stage reward"] if self.step == 1 else [],
        )


def build(config: FakeConfig) -> FakeApplication:
    return FakeApplication(config)


if __name__ == "__main__":
    service_main("fake", "tests.fakes.application:FakeConfig", "tests.fakes.application:build")
