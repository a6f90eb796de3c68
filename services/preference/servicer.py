"""Translates the PreferenceService contract to the domain and back. Decides nothing; errors propagate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.common.validation import require
from services.preference import domain
from services.preference.insight import AnnotatorSummary, Insight
from services.preference.preferences import Preferences
from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as wire
from trimtab.preference.v1 import preference_pb2_grpc as rpc

_CHOICES = {
    wire.CHOICE_FIRST: domain.Choice.FIRST,
    wire.CHOICE_SECOND: domain.Choice.SECOND,
    wire.CHOICE_TIE: domain.Choice.TIE,
    wire.CHOICE_SKIP: domain.Choice.SKIP,
    wire.CHOICE_FLAG: domain.Choice.FLAG,
}
_WIRE_CHOICES = {choice: number for number, choice in _CHOICES.items()}
_SUBJECTS = {
    wire.RATING_SUBJECT_CANDIDATE: domain.Subject.CANDIDATE,
    wire.RATING_SUBJECT_SOURCE: domain.Subject.SOURCE,
}


SERVICE_NAME = wire.DESCRIPTOR.services_by_name["PreferenceService"].full_name


class PreferenceServicer(rpc.PreferenceServiceServicer):
    """The wire's side of Preferences. TrimtabErrors are mapped to statuses by services/common/server.py."""

    def __init__(self, preferences: Preferences) -> None:
        self._preferences = preferences

    async def UploadCandidates(
        self, request: wire.UploadCandidatesRequest, _context: Any
    ) -> wire.UploadCandidatesResponse:
        """Items in."""
        uploaded = await self._preferences.upload([item_from(item) for item in request.items])
        return wire.UploadCandidatesResponse(
            accepted=uploaded.accepted, already_present=uploaded.already_present
        )

    async def NextTask(self, request: wire.NextTaskRequest, _context: Any) -> wire.NextTaskResponse:
        """Tasks out, leased."""
        tasks = await self._preferences.next_tasks(
            request.annotator, campaign=request.campaign, limit=request.max_tasks or 1
        )
        return wire.NextTaskResponse(tasks=[task_to(task) for task in tasks])

    async def RecordComparison(
        self, request: wire.RecordComparisonRequest, _context: Any
    ) -> wire.RecordComparisonResponse:
        """Comparisons in; on disk when this answers."""
        comparisons = [
            comparison_from(comparison, f"comparisons[{number}]")
            for number, comparison in enumerate(request.comparisons)
        ]
        recorded = await self._preferences.record(comparisons, made_elsewhere=request.made_elsewhere)
        return wire.RecordComparisonResponse(recorded=recorded)

    async def StreamComparisons(
        self, request: wire.StreamComparisonsRequest, _context: Any
    ) -> AsyncIterator[wire.StreamComparisonsResponse]:
        """All comparisons so far, by recorded time."""
        rows = self._preferences.comparisons(
            campaign=request.campaign, items=request.include_items, gold=request.include_gold
        )
        async for comparison, item in rows:
            yield wire.StreamComparisonsResponse(
                comparison=comparison_to(comparison), item=None if item is None else item_to(item)
            )

    async def GetRatings(self, request: wire.GetRatingsRequest, _context: Any) -> wire.GetRatingsResponse:
        """Ratings, best first."""
        known = request.subject in _SUBJECTS
        require(known, "subject", "expected RATING_SUBJECT_CANDIDATE or RATING_SUBJECT_SOURCE")
        ratings = await self._preferences.ratings(_SUBJECTS[request.subject], campaign=request.campaign)
        return wire.GetRatingsResponse(
            ratings=[
                wire.Rating(
                    subject=rating.subject,
                    rating=rating.rating,
                    low=rating.low,
                    high=rating.high,
                    comparisons=rating.comparisons,
                )
                for rating in ratings
            ]
        )

    async def GetStatistics(
        self, request: wire.GetStatisticsRequest, _context: Any
    ) -> wire.GetStatisticsResponse:
        """Counts."""
        counts = await self._preferences.statistics(campaign=request.campaign)
        insight = Insight()
        if request.include_annotators:
            insight = await self._preferences.insight(campaign=request.campaign)
        return wire.GetStatisticsResponse(
            items=counts.items,
            tasks_open=counts.tasks_open,
            comparisons=counts.comparisons,
            ties=counts.ties,
            skipped=counts.skipped,
            comparisons_by_annotator=counts.comparisons_by_annotator,
            agreement=insight.agreement,
            annotators=[_annotator_to(annotator) for annotator in insight.annotators],
        )


def _annotator_to(did: AnnotatorSummary) -> wire.AnnotatorStatistics:
    return wire.AnnotatorStatistics(
        annotator=did.annotator,
        comparisons=did.comparisons,
        ties=did.ties,
        skipped=did.skipped,
        first_share=did.first_share,
        agreement=did.agreement,
        gold=did.gold,
        gold_right=did.gold_right,
        median_seconds=did.median_seconds,
    )


def item_from(item: wire.Item) -> domain.Item:
    """The item of a message."""
    return domain.Item(
        item_id=item.item_id,
        prompt=tuple(domain.Message(message.role, message.content) for message in item.prompt),
        candidates=tuple(_candidate_from(candidate) for candidate in item.candidates),
        campaign=item.campaign,
        prompt_id=item.prompt_id,
        annotators=item.annotators,
        gold_order=tuple(item.gold_order),
    )


def _candidate_from(candidate: wire.Candidate) -> domain.Candidate:
    version = candidate.version
    return domain.Candidate(
        candidate_id=candidate.candidate_id,
        text=candidate.text,
        source=candidate.source,
        version=domain.Version(epoch=version.epoch, step=version.step, digest=version.digest)
        if candidate.HasField("version")
        else None,
    )


def item_to(item: domain.Item) -> wire.Item:
    """The message of an item."""
    return wire.Item(
        item_id=item.item_id,
        prompt=[common.ChatMessage(role=message.role, content=message.content) for message in item.prompt],
        candidates=[_candidate_to(candidate) for candidate in item.candidates],
        campaign=item.campaign,
        prompt_id=item.prompt_id,
        annotators=item.annotators,
        gold_order=item.gold_order,
    )


def _candidate_to(candidate: domain.Candidate) -> wire.Candidate:
    version = candidate.version
    return wire.Candidate(
        candidate_id=candidate.candidate_id,
        text=candidate.text,
        source=candidate.source,
        version=common.WeightsVersion(epoch=version.epoch, step=version.step, digest=version.digest)
        if version
        else None,
    )


def task_to(task: domain.Task) -> wire.Task:
    """The message of a task."""
    return wire.Task(
        task_id=task.task_id,
        item=item_to(task.item),
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        lease_until=_timestamp(task.lease_until),
    )


def comparison_from(comparison: wire.Comparison, field: str) -> domain.Comparison:
    """The comparison of a message; its time is the store's to set. InvalidInput without a choice."""
    known = comparison.choice in _CHOICES
    require(known, f"{field}.choice", "expected one of FIRST, SECOND, TIE, SKIP, FLAG")
    return domain.Comparison(
        task_id=comparison.task_id,
        item_id=comparison.item_id,
        annotator=comparison.annotator,
        first_candidate_id=comparison.first_candidate_id,
        second_candidate_id=comparison.second_candidate_id,
        choice=_CHOICES[comparison.choice],
        confidence=comparison.confidence if comparison.HasField("confidence") else None,
        comment=comparison.comment,
        ranking_id=comparison.ranking_id,
        seconds=comparison.seconds if comparison.HasField("seconds") else None,
        margin=comparison.margin if comparison.HasField("margin") else None,
    )


def comparison_to(comparison: domain.Comparison) -> wire.Comparison:
    """The message of a comparison."""
    return wire.Comparison(
        task_id=comparison.task_id,
        item_id=comparison.item_id,
        annotator=comparison.annotator,
        first_candidate_id=comparison.first_candidate_id,
        second_candidate_id=comparison.second_candidate_id,
        choice=_WIRE_CHOICES[comparison.choice],
        confidence=comparison.confidence,
        comment=comparison.comment,
        recorded_at=_timestamp(comparison.recorded_at),
        ranking_id=comparison.ranking_id,
        seconds=comparison.seconds,
        margin=comparison.margin,
    )


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return stamp
