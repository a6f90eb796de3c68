"""LearnerService on the wire: the run's state and control, nothing else."""

from __future__ import annotations

from typing import Any

from services.common.errors import Unavailable
from services.learner.run import Run
from services.models.wire import version_message
from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as wire
from trimtab.learner.v1 import learner_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["LearnerService"].full_name

_PHASE = {
    "loading": wire.RUN_PHASE_LOADING,
    "training": wire.RUN_PHASE_TRAINING,
    "paused": wire.RUN_PHASE_PAUSED,
    "finished": wire.RUN_PHASE_FINISHED,
    "failed": wire.RUN_PHASE_FAILED,
}


class LearnerServicer(wire_grpc.LearnerServiceServicer):
    """Answers for one Run, which is attached once it is loaded."""

    def __init__(self, run_uid: str, total_steps: int) -> None:
        self._run_uid = run_uid
        self._total_steps = total_steps
        self._run: Run | None = None

    def attach(self, run: Run) -> None:
        """From now on answer for this run."""
        self._run = run

    async def GetRunStatus(
        self, request: wire.GetRunStatusRequest, context: Any
    ) -> wire.GetRunStatusResponse:
        """Where the run stands."""
        answer = wire.GetRunStatusResponse(
            run_uid=self._run_uid, phase=wire.RUN_PHASE_LOADING, total_steps=self._total_steps
        )
        run = self._run
        if run is None:
            return answer
        state = run.state
        answer.phase = _PHASE[state.phase]
        answer.step = run.step
        answer.rollouts.CopyFrom(
            wire.RolloutCounts(**run.ledger.counts(), awaiting_checkpoint=run.awaiting_checkpoint)
        )
        answer.metrics.update(state.metrics)
        answer.warnings.extend(run.warnings)
        answer.last_checkpoint = state.last_checkpoint
        if state.version is not None:
            answer.version.CopyFrom(version_message(state.version))
        if state.error:
            answer.error.CopyFrom(common.ErrorInfo(code="INTERNAL", message=state.error, origin="learner"))
        return answer

    async def Pause(self, request: wire.PauseRequest, context: Any) -> wire.PauseResponse:
        """Hold at the next step boundary."""
        self._attached().pause()
        return wire.PauseResponse(step=self._attached().step)

    async def Resume(self, request: wire.ResumeRequest, context: Any) -> wire.ResumeResponse:
        """Go on."""
        self._attached().resume()
        return wire.ResumeResponse(step=self._attached().step)

    async def Checkpoint(self, request: wire.CheckpointRequest, context: Any) -> wire.CheckpointResponse:
        """Write a checkpoint at the next step boundary."""
        path = await self._attached().checkpoint()
        return wire.CheckpointResponse(path=path, step=self._attached().step)

    async def Stop(self, request: wire.StopRequest, context: Any) -> wire.StopResponse:
        """End after a last checkpoint."""
        self._attached().stop()
        return wire.StopResponse(step=self._attached().step)

    def _attached(self) -> Run:
        if self._run is None:
            raise Unavailable("the learner is loading")
        return self._run
