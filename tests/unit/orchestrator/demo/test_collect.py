"""What the demo does when a service refuses a call or goes away in the middle of it, and with odd answers."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from orchestrator.demo.collect import DemoPrompt, item_of, persist, trl_row
from services.common.comparisons import read
from services.common.errors import ServiceError, TrimtabError, UserError
from trimtab.clients.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    TrimtabClientError,
    UnavailableError,
)
from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as preference


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT, UserError),
        (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION, UserError),
        (DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED, ServiceError),
    ],
)
async def test_a_refusal_is_of_the_error_tree(
    kind: type[TrimtabClientError], code: grpc.StatusCode, expected: type[TrimtabError]
) -> None:
    """So that the command line tells it in one line; and it is not tried again."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise kind(code, "no chat template")

    async def ready() -> None:
        raise AssertionError("nobody waits")

    with pytest.raises(expected, match=r"^no chat template$"):
        await persist(call, ready)
    assert calls == 1


async def test_a_service_that_went_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is repeated once the service serves again."""
    happened: list[str] = []

    async def pause(seconds: float) -> None:
        happened.append("pause")

    async def call() -> str:
        happened.append("call")
        if happened.count("call") == 1:
            raise UnavailableError(grpc.StatusCode.UNAVAILABLE, "gone")
        return "answer"

    async def ready() -> None:
        happened.append("ready")

    monkeypatch.setattr(asyncio, "sleep", pause)
    assert await persist(call, ready) == "answer"
    assert happened == ["call", "pause", "ready", "call"]


def test_what_a_database_cannot_hold_is_replaced() -> None:
    """A NUL that a model wrote becomes the replacement character; the rest of the answer stays."""
    prompt = DemoPrompt("p1", (("user", "Hello?"),), "train")
    item = item_of(prompt, "one", "compared", [("a\0b", "policy@0", common.WeightsVersion())])
    assert [candidate.text for candidate in item.candidates] == ["a\ufffdb"]


def test_what_people_rank_can_all_be_trained_on() -> None:
    """A model wrote one text twice and somebody gave the two different places: no row of a pair of copies."""
    version = common.WeightsVersion()
    texts = [(text, "policy@0", version) for text in ("Sure.", "Sure.", "No.")]
    item = item_of(DemoPrompt("p1", (("user", "Hi"),), "train"), "one", "round-01", texts)
    rows = [
        trl_row(
            preference.StreamComparisonsResponse(
                comparison=preference.Comparison(
                    first_candidate_id=f"one-{first}",
                    second_candidate_id=f"one-{second}",
                    choice=preference.CHOICE_FIRST,
                ),
                item=item,
            )
        )
        for first, second in ((0, 1), (0, 2), (2, 1))
    ]
    assert rows[0] is None
    kept = [row for row in rows if row is not None]
    assert [record.answers for record in read(kept)] == [("Sure.", "No."), ("No.", "Sure.")]
