"""Clients of LearnerService and WeightService: the run's state and control, and its weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, cast

from trimtab.clients.base import AsyncClient, SyncClient
from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as wire
from trimtab.learner.v1 import learner_pb2_grpc as wire_grpc
from trimtab.weights.v1 import weights_pb2 as weights
from trimtab.weights.v1 import weights_pb2_grpc as weights_grpc

if TYPE_CHECKING:
    from trimtab.learner.v1.learner_pb2_grpc import LearnerServiceAsyncStub
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub


class LearnerClient(SyncClient):
    """The run's state and control, and its weights. Blocking."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = wire_grpc.LearnerServiceStub(self._channel)
        self._weights = weights_grpc.WeightServiceStub(self._channel)

    def status(self, *, timeout_seconds: float | None = None) -> wire.GetRunStatusResponse:
        """Step, version, counts of groups, metrics, warnings."""
        return self._call(self._stub.GetRunStatus, wire.GetRunStatusRequest(), timeout_seconds)

    def pause(self, *, timeout_seconds: float | None = None) -> int:
        """Hold at the next step boundary; the step."""
        return self._call(self._stub.Pause, wire.PauseRequest(), timeout_seconds).step

    def resume(self, *, timeout_seconds: float | None = None) -> int:
        """Go on; the step."""
        return self._call(self._stub.Resume, wire.ResumeRequest(), timeout_seconds).step

    def checkpoint(self, *, timeout_seconds: float | None = None) -> wire.CheckpointResponse:
        """Write a checkpoint at the next step boundary, for which it waits ten minutes."""
        return self._call(self._stub.Checkpoint, wire.CheckpointRequest(), self._long(timeout_seconds))

    def stop(self, *, timeout_seconds: float | None = None) -> int:
        """End the run after a last checkpoint; the step."""
        return self._call(self._stub.Stop, wire.StopRequest(), self._long(timeout_seconds)).step

    def manifest(
        self,
        run_uid: str,
        *,
        version: common.WeightsVersion | None = None,
        timeout_seconds: float | None = None,
    ) -> weights.WeightManifest:
        """The manifest of a version, or of the newest."""
        request = weights.GetManifestRequest(run_uid=run_uid, version=version)
        return self._call(self._weights.GetManifest, request, timeout_seconds).manifest

    def watch_versions(
        self, run_uid: str, *, timeout_seconds: float | None = None
    ) -> Iterator[weights.WatchVersionsResponse]:
        """Every version from now on, the newest first of all."""
        request = weights.WatchVersionsRequest(run_uid=run_uid)
        return self._stream(self._weights.WatchVersions, request, timeout_seconds)

    def fetch_weights(
        self, request: weights.FetchWeightsRequest, *, timeout_seconds: float | None = None
    ) -> Iterator[weights.FetchWeightsResponse]:
        """The bytes of a version in chunks; after a break ask again with `offset`."""
        return self._stream(self._weights.FetchWeights, request, timeout_seconds)


class AsyncLearnerClient(AsyncClient):
    """The run's state and control, and its weights. For asyncio."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = cast("LearnerServiceAsyncStub", wire_grpc.LearnerServiceStub(self._channel))
        self._weights = cast("WeightServiceAsyncStub", weights_grpc.WeightServiceStub(self._channel))

    async def status(self, *, timeout_seconds: float | None = None) -> wire.GetRunStatusResponse:
        """Step, version, counts of groups, metrics, warnings."""
        return await self._call(self._stub.GetRunStatus, wire.GetRunStatusRequest(), timeout_seconds)

    async def pause(self, *, timeout_seconds: float | None = None) -> int:
        """Hold at the next step boundary; the step."""
        return (await self._call(self._stub.Pause, wire.PauseRequest(), timeout_seconds)).step

    async def resume(self, *, timeout_seconds: float | None = None) -> int:
        """Go on; the step."""
        return (await self._call(self._stub.Resume, wire.ResumeRequest(), timeout_seconds)).step

    async def checkpoint(self, *, timeout_seconds: float | None = None) -> wire.CheckpointResponse:
        """Write a checkpoint at the next step boundary, for which it waits ten minutes."""
        return await self._call(self._stub.Checkpoint, wire.CheckpointRequest(), self._long(timeout_seconds))

    async def stop(self, *, timeout_seconds: float | None = None) -> int:
        """End the run after a last checkpoint; the step."""
        return (await self._call(self._stub.Stop, wire.StopRequest(), self._long(timeout_seconds))).step

    async def manifest(
        self,
        run_uid: str,
        *,
        version: common.WeightsVersion | None = None,
        timeout_seconds: float | None = None,
    ) -> weights.WeightManifest:
        """The manifest of a version, or of the newest."""
        request = weights.GetManifestRequest(run_uid=run_uid, version=version)
        return (await self._call(self._weights.GetManifest, request, timeout_seconds)).manifest

    def watch_versions(
        self, run_uid: str, *, timeout_seconds: float | None = None
    ) -> AsyncIterator[weights.WatchVersionsResponse]:
        """Every version from now on, the newest first of all."""
        request = weights.WatchVersionsRequest(run_uid=run_uid)
        return self._stream(self._weights.WatchVersions, request, timeout_seconds)

    def fetch_weights(
        self, request: weights.FetchWeightsRequest, *, timeout_seconds: float | None = None
    ) -> AsyncIterator[weights.FetchWeightsResponse]:
        """The bytes of a version in chunks; after a break ask again with `offset`."""
        return self._stream(self._weights.FetchWeights, request, timeout_seconds)
