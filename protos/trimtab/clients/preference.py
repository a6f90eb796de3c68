"""Clients of PreferenceService: candidates in, tasks out, comparisons in, ratings out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from trimtab.clients.base import AsyncClient, SyncClient
from trimtab.preference.v1 import preference_pb2 as wire
from trimtab.preference.v1 import preference_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.preference.v1.preference_pb2_grpc import PreferenceServiceAsyncStub


class PreferenceClient(SyncClient):
    """Comparisons, annotators, ratings. Blocking."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = wire_grpc.PreferenceServiceStub(self._channel)

    def upload(
        self, items: Sequence[wire.Item], *, timeout_seconds: float | None = None
    ) -> wire.UploadCandidatesResponse:
        """Add items to be compared; one that is there already is left alone. AlreadyExistsError: not the same one."""
        request = wire.UploadCandidatesRequest(items=items)
        return self._call(self._stub.UploadCandidates, request, timeout_seconds)

    def next_tasks(
        self, annotator: str, *, campaign: str = "", max_tasks: int = 1, timeout_seconds: float | None = None
    ) -> list[wire.Task]:
        """Tasks leased to an annotator; an empty list when there are none."""
        request = wire.NextTaskRequest(annotator=annotator, campaign=campaign, max_tasks=max_tasks)
        return list(self._call(self._stub.NextTask, request, timeout_seconds).tasks)

    def record(
        self,
        comparisons: Sequence[wire.Comparison],
        *,
        made_elsewhere: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Store comparisons; how many were stored. They are durable when this returns.

        made_elsewhere: they are kept though a task has its answers already, or is someone else's for now.
        """
        request = wire.RecordComparisonRequest(comparisons=comparisons, made_elsewhere=made_elsewhere)
        return self._call(self._stub.RecordComparison, request, timeout_seconds).recorded

    def comparisons(
        self,
        *,
        campaign: str = "",
        include_items: bool = False,
        include_gold: bool = False,
        timeout_seconds: float | None = None,
    ) -> Iterator[wire.StreamComparisonsResponse]:
        """Every comparison of a campaign; those of gold items only where asked for."""
        request = wire.StreamComparisonsRequest(
            campaign=campaign, include_items=include_items, include_gold=include_gold
        )
        return self._stream(self._stub.StreamComparisons, request, timeout_seconds)

    def ratings(
        self,
        *,
        campaign: str = "",
        subject: wire.RatingSubject.ValueType = wire.RATING_SUBJECT_SOURCE,
        timeout_seconds: float | None = None,
    ) -> list[wire.Rating]:
        """Elo ratings of candidates or sources."""
        request = wire.GetRatingsRequest(campaign=campaign, subject=subject)
        return list(self._call(self._stub.GetRatings, request, timeout_seconds).ratings)

    def statistics(
        self, *, campaign: str = "", annotators: bool = False, timeout_seconds: float | None = None
    ) -> wire.GetStatisticsResponse:
        """How much has been compared, by whom. `annotators`: how each of them does, and how far they agree."""
        request = wire.GetStatisticsRequest(campaign=campaign, include_annotators=annotators)
        return self._call(self._stub.GetStatistics, request, timeout_seconds)


class AsyncPreferenceClient(AsyncClient):
    """Comparisons, annotators, ratings. For asyncio."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = cast("PreferenceServiceAsyncStub", wire_grpc.PreferenceServiceStub(self._channel))

    async def upload(
        self, items: Sequence[wire.Item], *, timeout_seconds: float | None = None
    ) -> wire.UploadCandidatesResponse:
        """Add items to be compared; one that is there already is left alone. AlreadyExistsError: not the same one."""
        request = wire.UploadCandidatesRequest(items=items)
        return await self._call(self._stub.UploadCandidates, request, timeout_seconds)

    async def next_tasks(
        self, annotator: str, *, campaign: str = "", max_tasks: int = 1, timeout_seconds: float | None = None
    ) -> list[wire.Task]:
        """Tasks leased to an annotator; an empty list when there are none."""
        request = wire.NextTaskRequest(annotator=annotator, campaign=campaign, max_tasks=max_tasks)
        return list((await self._call(self._stub.NextTask, request, timeout_seconds)).tasks)

    async def record(
        self,
        comparisons: Sequence[wire.Comparison],
        *,
        made_elsewhere: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Store comparisons; how many were stored. They are durable when this returns.

        made_elsewhere: they are kept though a task has its answers already, or is someone else's for now.
        """
        request = wire.RecordComparisonRequest(comparisons=comparisons, made_elsewhere=made_elsewhere)
        return (await self._call(self._stub.RecordComparison, request, timeout_seconds)).recorded

    def comparisons(
        self,
        *,
        campaign: str = "",
        include_items: bool = False,
        include_gold: bool = False,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[wire.StreamComparisonsResponse]:
        """Every comparison of a campaign; those of gold items only where asked for."""
        request = wire.StreamComparisonsRequest(
            campaign=campaign, include_items=include_items, include_gold=include_gold
        )
        return self._stream(self._stub.StreamComparisons, request, timeout_seconds)

    async def ratings(
        self,
        *,
        campaign: str = "",
        subject: wire.RatingSubject.ValueType = wire.RATING_SUBJECT_SOURCE,
        timeout_seconds: float | None = None,
    ) -> list[wire.Rating]:
        """Elo ratings of candidates or sources."""
        request = wire.GetRatingsRequest(campaign=campaign, subject=subject)
        return list((await self._call(self._stub.GetRatings, request, timeout_seconds)).ratings)

    async def statistics(
        self, *, campaign: str = "", annotators: bool = False, timeout_seconds: float | None = None
    ) -> wire.GetStatisticsResponse:
        """How much has been compared, by whom. `annotators`: how each of them does, and how far they agree."""
        request = wire.GetStatisticsRequest(campaign=campaign, include_annotators=annotators)
        return await self._call(self._stub.GetStatistics, request, timeout_seconds)
