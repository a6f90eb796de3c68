"""PreferenceService: items and comparisons in, tasks, ratings, statistics and comparisons out, over SQLite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.preference.application import PreferenceApplication
from services.preference.domain import make_task_id
from tests.fuzz import people, rpc
from tests.fuzz.surface import Surface
from trimtab.preference.v1 import preference_pb2 as wire

_SERVICE = "trimtab.preference.v1.PreferenceService"


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """What inputs add stays, as it would: the database grows with them."""
    config = people.config(folder)
    with (
        rpc.served(config, lambda: PreferenceApplication(config)) as endpoints,
        rpc.surface(endpoints.grpc, _methods()) as surface,
    ):
        yield surface


def _methods() -> list[rpc.Method]:
    items = [people.item(number) for number in range(people.ITEMS)]
    gold = people.item(9)
    gold.gold_order.extend(["b", "a", "c"])
    gold.annotators = 2
    comparison = wire.Comparison(
        task_id=make_task_id("item0", "a", "b"),
        item_id="item0",
        annotator="ann",
        first_candidate_id="a",
        second_candidate_id="b",
        choice=wire.CHOICE_FIRST,
        confidence=0.5,
        comment="because",
        recorded_at=Timestamp(seconds=1_700_000_000),
        seconds=3,
        margin=0.5,
    )
    tie = wire.Comparison(
        task_id=make_task_id("item1", "a", "c"),
        annotator="bob",
        first_candidate_id="c",
        second_candidate_id="a",
        choice=wire.CHOICE_TIE,
        ranking_id="r1",
    )
    return [
        rpc.Method(
            f"{_SERVICE}/UploadCandidates",
            [wire.UploadCandidatesRequest(items=items), wire.UploadCandidatesRequest(items=[gold])],
            wire.UploadCandidatesResponse,
        ),
        rpc.Method(
            f"{_SERVICE}/NextTask",
            [
                wire.NextTaskRequest(annotator="ann", max_tasks=2),
                wire.NextTaskRequest(annotator="x", campaign="fuzz"),
            ],
            wire.NextTaskResponse,
        ),
        rpc.Method(
            f"{_SERVICE}/RecordComparison",
            [
                wire.RecordComparisonRequest(comparisons=[comparison, tie], made_elsewhere=True),
                wire.RecordComparisonRequest(comparisons=[comparison], made_elsewhere=True),
            ],
            wire.RecordComparisonResponse,
        ),
        rpc.Method(
            f"{_SERVICE}/StreamComparisons",
            [
                wire.StreamComparisonsRequest(include_items=True, include_gold=True),
                wire.StreamComparisonsRequest(campaign="fuzz"),
            ],
            wire.StreamComparisonsResponse,
            streaming=True,
            endless=True,  # of all that was ever recorded, the first is enough
        ),
        rpc.Method(
            f"{_SERVICE}/GetRatings",
            [
                wire.GetRatingsRequest(subject=wire.RATING_SUBJECT_SOURCE),
                wire.GetRatingsRequest(subject=wire.RATING_SUBJECT_CANDIDATE, campaign="fuzz"),
            ],
            wire.GetRatingsResponse,
            check=_check_ratings,
        ),
        rpc.Method(
            f"{_SERVICE}/GetStatistics",
            [wire.GetStatisticsRequest(include_annotators=True), wire.GetStatisticsRequest(campaign="fuzz")],
            wire.GetStatisticsResponse,
        ),
    ]


def _check_ratings(_sent: bytes, answers: list[Any]) -> None:
    for rating in answers[0].ratings:
        assert math.isfinite(rating.rating), "a rating that is not finite"
        assert rating.low <= rating.rating <= rating.high or not rating.comparisons, (
            "an interval beside its rating"
        )
