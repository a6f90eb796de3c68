"""The reward stage as a worker sees it: scores written, and what becomes of groups that have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from services.common.errors import Corrupted, Overloaded, ServiceError, TrimtabError, Unavailable
from services.reward.futures import done
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceDescription, SourceKind
from services.reward.scoring import RewardModels
from services.reward.shadow import ShadowRunner
from services.reward.worker import RewardProcessor
from trimtab.rollout.v1 import rollout_pb2 as rollout


class Answers:
    """Answers each row by a function of its text; a TrimtabError is the row's, "raise" is raised at once."""

    kind: SourceKind = "rule"
    digest = "d"

    def __init__(self, answer: Callable[[str], float | TrimtabError]) -> None:
        self._answer = answer

    def describe(self) -> SourceDescription:
        return SourceDescription()

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        if any(row.completion == "full" for row in rows):
            raise Overloaded("16384 rows wait")
        answers = [self._answer(row.completion) for row in rows]
        return done(
            [
                ScoreOutcome(error=one) if isinstance(one, TrimtabError) else ScoreOutcome(value=one)
                for one in answers
            ]
        )

    def close(self) -> None:
        return


def kinds(answer: Callable[[str], float | TrimtabError], groups: list[rollout.RolloutGroup]) -> list[str]:
    models = RewardModels()
    models.add("m", Answers(answer))
    processor = RewardProcessor(models, ShadowRunner(models), model="m", stage="reward", replica="r")
    return [outcome.kind for outcome in processor.process(groups, threading.Event())]


def group(*texts: str) -> rollout.RolloutGroup:
    made = rollout.RolloutGroup(slip=["reward"])
    for text in texts:
        made.completions.add(text=text)
    return made


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Unavailable("restarting"), "away"), (Overloaded("full"), "away"), (ServiceError("raised"), "failed")],
)
def test_what_may_pass_by_itself_is_no_failure(error: TrimtabError, kind: str) -> None:
    """A group with a row whose scorer is away or full is to come again, unscored; the others are done."""
    groups = [group("a"), group("b", "gone"), group("c")]
    assert kinds(lambda text: error if text == "gone" else 1.0, groups) == ["done", kind, "done"]
    assert [len(one.scores) for each in groups for one in each.completions] == [1, 0, 0, 1]
    assert [len(each.timings) for each in groups] == [1, 0 if kind == "away" else 1, 1]


def test_what_will_not_pass_decides() -> None:
    """A row that is broken for good fails its group, even where another row's scorer is only away."""
    answers: dict[str, TrimtabError] = {"gone": Unavailable("restarting"), "bad": Corrupted("not finite")}
    assert kinds(answers.__getitem__, [group("gone", "bad")]) == ["failed"]


def test_a_full_source_costs_only_what_was_asked_of_it() -> None:
    """Rows that are refused together leave what was scored before them as it is."""
    groups = [group(*["a"] * 40), group(*["b"] * 40), group("full")]
    assert kinds(lambda _: 1.0, groups) == ["done", "away", "away"]
