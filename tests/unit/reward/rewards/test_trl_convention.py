"""Functions written for TRL, called as TRL calls them; None leaves a row out of a sum, as TRL's nansum does."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from services.common.errors import InvalidInput, UserError
from services.common.spec.rewards import RunReward, reward_tables, source_table
from services.reward.config import CompositeSpec, FunctionSpec, RewardConfig
from services.reward.futures import done
from services.reward.rewards.base import Caller, NotScored, ScoreOutcome, ScoreRow
from services.reward.rewards.composite import CompositeReward
from services.reward.rewards.function import FunctionReward
from services.reward.rewards.function_call import FunctionCaller
from tests.unit.reward.rewards.test_composite import ROW, Part


def sent(prompt: Any, completion: str, ids: list[int] | None = None, **columns: Any) -> dict[str, Any]:
    """A row as the worker gets it."""
    packed = {"trl_row": json.dumps({"prompt": prompt, **columns})}
    return {"prompt": "…", "completion": completion, "messages": [], "columns": packed, "ids": ids}


def given_to(function: Any, *rows: dict[str, Any]) -> dict[str, Any]:
    return FunctionCaller(function).answer(rows, trl=True)


def test_arguments_are_trls() -> None:
    """Prompts and columns as the data set has them, completions as text or as one message, ids, no prompt column."""
    heard: dict[str, Any] = {}

    def reward(**given: Any) -> list[float]:
        heard.update(given)
        given["log_extra"]("column", [1])
        given["log_metric"]("metric", 0.5)
        return [1.0, 2.0]

    chat = [{"role": "user", "content": "hi"}]
    answer = given_to(reward, sent("a", "b", [1, 2], gold=5), sent(chat, "c", [3], gold=None, tags=["x"]))
    assert answer == {"values": [1.0, 2.0]}
    del heard["log_extra"], heard["log_metric"]
    assert heard == {
        "prompts": ["a", chat],
        "completions": ["b", [{"role": "assistant", "content": "c"}]],
        "completion_ids": [[1, 2], [3]],
        "gold": [5, None],
        "tags": [None, ["x"]],
    }


def test_none_is_no_score() -> None:
    """None and NaN stay None, other values are as ever; without the convention None is an error of the row."""
    rows = [sent("a", str(n)) for n in range(4)]

    def reward(completions: list[str], **_: Any) -> list[Any]:
        return [None, math.nan, np.float32(2.5), "x"]

    [first, second, third, fourth] = given_to(reward, *rows)["values"]
    assert (first, second, third) == (None, None, 2.5)
    assert fourth == "returned a value of type str for this row, expected a number"
    assert "returned None" in FunctionCaller(reward).answer(rows)["values"][0]


def test_what_is_not_given_is_named() -> None:
    """A function that needs the trainer's state is told that it is missing."""

    def reward(completions: list[str], trainer_state: Any) -> list[float]:
        return [0.0]

    assert given_to(reward, sent("a", "b")) == {"missing": ["trainer_state"]}


def test_in_a_process_of_its_own() -> None:
    """Tokens of the policy arrive; None becomes an error that says that there is no score."""
    source = FunctionReward(
        FunctionSpec(name="tests.fakes.reward_functions:trl_tokens", convention="trl", timeout_seconds=20),
        name="r",
    )
    try:
        rows = [
            ScoreRow(messages=(("user", "q"),), completion="abc", completion_ids=np.array(ids, np.int32))
            for ids in ([7, 8], [])
        ]
        scored, absent = source.submit(rows, Caller()).result(timeout=30)
    finally:
        source.close()
    assert scored.value == 15
    assert isinstance(absent.error, NotScored)


def test_a_row_that_cannot_be_read_costs_itself_alone() -> None:
    """What is no JSON object with a prompt has InvalidInput in its place; its neighbours have scores."""
    source = FunctionReward(
        FunctionSpec(name="tests.fakes.reward_functions:trl_tokens", convention="trl", timeout_seconds=20),
        name="r",
    )
    bad = ["{", "[]", "7", "null", '{"gold": 1}', '{"prompt": 1}', "[" * 100_000]
    packed = [*bad, json.dumps({"prompt": "q"})]
    try:
        rows = [
            ScoreRow(
                messages=(("user", "q"),),
                completion="abc",
                columns={"trl_row": one},
                completion_ids=np.array([7, 8], np.int32),
            )
            for one in packed
        ]
        *wrong, good = source.submit(rows, Caller()).result(timeout=30)
    finally:
        source.close()
    assert good.value == 15
    for outcome in wrong:
        assert isinstance(outcome.error, InvalidInput)
        assert outcome.error.violations == {"columns[trl_row]": "a JSON object with a prompt"}


def test_arguments_that_cannot_be_made_do_not_end_the_process() -> None:
    """Whatever is raised before the call is an answer, as what is raised in it."""
    row = sent("a", "b") | {"columns": {"trl_row": "{"}}
    assert given_to(lambda completions: [1.0], row)["raised"].startswith("JSONDecodeError")


def composite(absent: str, *parts: ScoreOutcome) -> ScoreOutcome:
    components = [{"model": f"r-{n}", "weight": weight} for n, weight in enumerate((2.0, 0.5))]
    spec = CompositeSpec.model_validate({"components": components, "absent": absent})
    sources = {f"r-{n}": Part(done([part])) for n, part in enumerate(parts)}
    [outcome] = CompositeReward(spec, sources).submit([ROW], Caller()).result(timeout=5)
    return outcome


def test_a_part_without_a_score_is_left_out_of_the_sum() -> None:
    """2 * 3 with the other part absent, whose component is not told; the weights stay as they are."""
    none = ScoreOutcome(error=NotScored("no score"))
    both = composite("skip", ScoreOutcome(value=3.0), ScoreOutcome(value=4.0))
    assert both.value == 8
    one = composite("skip", ScoreOutcome(value=3.0), none)
    assert (one.value, dict(one.components)) == (6, {"r-0": 3.0})
    assert composite("error", ScoreOutcome(value=3.0), none).error is not None


def test_a_row_that_no_part_scores_is_an_error() -> None:
    """TRL would train on 0 and warn; here nothing is scored 0 in silence. Other errors stay errors."""
    none = ScoreOutcome(error=NotScored("no score"))
    assert "component r-0: no score" in str(composite("skip", none, none).error)
    broken = ScoreOutcome(error=Broken("broken"))
    assert "component r-1: broken" in str(composite("skip", none, broken).error)


class Broken(UserError):
    """Not the one that may be skipped."""


def test_a_runs_rewards_become_tables_that_the_service_takes() -> None:
    """One source stays one; several become a composite that comes after its parts and skips what is absent."""
    assert reward_tables("reward", "rule:length", ()) == [{"name": "reward", "rule": "length"}]
    assert reward_tables("reward", "", ()) == []
    assert source_table("some/folder") == {"path": "some/folder"}
    rewards = [RunReward(source="trl:mine:f"), RunReward(source="function:mine:g", weight=0.5)]
    config = RewardConfig.model_validate({"models": reward_tables("reward", "", rewards)})
    first, second, whole = config.models
    assert first.function is not None
    assert first.function.convention == "trl"
    assert second.function is not None
    assert second.function.convention == "plain"
    assert whole.composite is not None
    assert [(part.model, part.weight) for part in whole.composite.components] == [
        ("reward-1", 1.0),
        ("reward-2", 0.5),
    ]


@pytest.mark.parametrize("field", ["rule:length", "trl:mine:f"])
def test_a_run_has_one_way_of_rewards(field: str) -> None:
    """reward_model and reward_sources together are refused in one line."""
    from services.common.spec.run import RunSpec

    with pytest.raises(ValueError, match="reward_model and reward_sources: expected one of them"):
        RunSpec.model_validate(
            {
                "model": {"path": "m"},
                "data": {"prompts": "p"},
                "reward_model": field,
                "reward_sources": [{"source": field}],
            }
        )
