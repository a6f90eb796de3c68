"""Who beat whom, when a run of rounds ends, and what a break leaves on file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.demo.collect import DemoPrompt
from orchestrator.iterate import answers, contest, state
from orchestrator.iterate.contest import Verdict
from orchestrator.iterate.options import IterateSpec
from services.common.errors import Corrupted
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.preference.v1 import preference_pb2 as preference
from trimtab.rollout.v1 import rollout_pb2 as rollout


def answer(
    first: str, second: str, choice: preference.Choice.ValueType
) -> preference.StreamComparisonsResponse:
    """A comparison of candidates a and b of these sources."""
    return preference.StreamComparisonsResponse(
        comparison=preference.Comparison(first_candidate_id="a", second_candidate_id="b", choice=choice),
        item=preference.Item(
            prompt_id="p",
            candidates=[
                preference.Candidate(candidate_id="a", source=first),
                preference.Candidate(candidate_id="b", source=second),
            ],
        ),
    )


def test_a_verdict_is_from_the_newer_versions_side() -> None:
    """Whichever stands first; ties are half; skips and one version against itself say nothing."""
    old, new = contest.source(0), contest.source(2)
    assert contest.verdict(answer(old, new, preference.CHOICE_SECOND)) == Verdict(2, 0, "p", 1.0)
    assert contest.verdict(answer(new, old, preference.CHOICE_SECOND)) == Verdict(2, 0, "p", 0.0)
    assert contest.verdict(answer(new, old, preference.CHOICE_TIE)) == Verdict(2, 0, "p", 0.5)
    assert contest.verdict(answer(new, old, preference.CHOICE_SKIP)) is None
    assert contest.verdict(answer(new, new, preference.CHOICE_FIRST)) is None


def test_results_are_by_opponent_with_an_interval_over_prompts() -> None:
    """Version 2 wins 3 of 4 against 1 and all against 0; other versions' games do not count."""
    games = [Verdict(2, 1, f"p{at}", score) for at, score in enumerate((1.0, 1.0, 1.0, 0.0))]
    games += [Verdict(2, 0, "p0", 1.0)] * 2 + [Verdict(1, 0, "p0", 0.0)]
    zero, one = contest.results(games, 2)
    assert (zero.version, zero.win_rate, zero.low, zero.high, zero.comparisons) == (0, 1.0, 1.0, 1.0, 2)
    assert (one.version, one.win_rate, one.comparisons) == (1, 0.75, 4)
    assert one.low < 0.75 <= one.high


@pytest.mark.parametrize(("low", "ends"), [(0.49, True), (0.51, False)])
def test_a_plateau_is_a_round_whose_interval_holds_a_half(low: float, ends: bool) -> None:
    """The result against the version before decides, not the one against the first."""
    one = state.Round(number=2)
    one.against = [
        state.Against(version=0, win_rate=0.9, low=0.8, high=1.0, comparisons=9),
        state.Against(version=1, win_rate=0.6, low=low, high=0.7, comparisons=9),
    ]
    assert state.plateau(one) == ends


def test_when_rounds_stop_follows_from_what_is_on_file() -> None:
    """Not within a round; at the limit, or at a plateau where asked for; a higher limit lets them go on."""
    rounds = state.Rounds(reference="initial", policy_init="previous")
    assert state.why_stopped(rounds, 2, plateaus=True) == ""
    first = rounds.current()
    first.against = [state.Against(version=0, win_rate=0.6, low=0.55, high=0.7, comparisons=9)]
    first.done = ["sampled", "compared", "rewarded", "trained"]
    assert state.why_stopped(rounds, 1, plateaus=True) == ""
    first.done.append("evaluated")
    assert state.why_stopped(rounds, 1, plateaus=True) == "all 1 rounds are done"
    assert state.why_stopped(rounds, 2, plateaus=True) == ""
    first.against[0].low = 0.5
    assert state.why_stopped(rounds, 2, plateaus=True).startswith("a plateau: round 1")
    assert state.why_stopped(rounds, 2, plateaus=False) == ""
    assert (rounds.current().number, rounds.current().number) == (2, 2)


def test_state_is_read_as_written_and_damage_is_told(tmp_path: Path) -> None:
    """A file that is no state of rounds is one line, and no file is the beginning."""
    path = tmp_path / "rounds.json"
    assert state.read(path) is None
    rounds = state.Rounds(reference="initial", policy_init="previous")
    rounds.current().done.append("sampled")
    state.write(path, rounds)
    assert state.read(path) == rounds
    path.write_text('{"rounds": 3}')
    with pytest.raises(Corrupted, match=r"rounds.json is damaged"):
        state.read(path)


class FakeSampler:
    """Answers with the prompt's name; ends after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.seeds: list[int] = []

    async def sample(self, prompts: Sequence[DemoPrompt], **asked: Any) -> list[policy.GeneratedCompletions]:
        if not self.calls:
            raise ConnectionError
        self.calls -= 1
        self.seeds.append(asked["seed"])
        version = rollout.VersionSpan(version=common.WeightsVersion(digest="d", step=3))
        return [
            policy.GeneratedCompletions(
                completions=[
                    rollout.Completion(text=f"{one.prompt_id}.{nth}", versions=[version])
                    for nth in range(asked["count"])
                ]
            )
            for one in prompts
        ]


@pytest.mark.parametrize("count, prompts", [(5, 25), (4, 31), (1, 125), (200, 1)])
def test_calls_for_fewer_answers_hold_more_prompts(count: int, prompts: int) -> None:
    """No call asks for more completions than one of 25 prompts for all five answers, and each for one prompt's."""
    assert IterateSpec(call_prompts=25, answers=5).prompts_in_call(count) == prompts


async def test_answers_go_on_where_they_were_broken_off(tmp_path: Path) -> None:
    """Two calls of four, then the rest with the draws that they would have had; a third time nobody is asked."""
    prompts = [DemoPrompt(str(at), (("user", "x"),), "train") for at in range(7)]
    path = tmp_path / "r" / "answers.jsonl"

    async def ask(sampler: FakeSampler) -> list[answers.Answered]:
        async def started() -> Any:
            return sampler

        return await answers.answered(
            path, started, prompts, call_prompts=2, count=2, seed=5, heard=lambda _: None
        )

    first, second, third, whole = FakeSampler(2), FakeSampler(9), FakeSampler(0), FakeSampler(9)
    with pytest.raises(ConnectionError):
        await ask(first)
    found = await ask(second)
    assert [one.texts for one in found] == [(f"{at}.0", f"{at}.1") for at in range(7)]
    assert (found[6].version.digest, found[6].version.step) == ("d", 3)
    assert await ask(third) == found
    path.unlink()
    assert await ask(whole) == found
    assert first.seeds + second.seeds == whole.seeds
