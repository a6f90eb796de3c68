"""From rollout groups to a step's metrics: who is the annotator, what is told, what a resume knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.spec.run import RunSpec
from services.learner.sample import Sample
from services.learner.watch.watch import Watch
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

SLIP = ["policy", "reference", "reward/hh", "reward/judge"]
TABLES: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"prompts": "p.jsonl"},
    "rollout": {"slip": SLIP, "reward_weights": {"reward/judge": 0.0}},
    "watch": {"window_steps": 1, "worst_samples": 1},
}


def spec_of(**watch: Any) -> RunSpec:
    return RunSpec.model_validate(TABLES | {"watch": TABLES["watch"] | watch})


def group(*completions: tuple[str, float, float, int]) -> tuple[rollout.RolloutGroup, list[Sample]]:
    """Text, score by hh, score by judge, tokens: the last of which is masked."""
    whole, samples = rollout.RolloutGroup(prompt=rollout.Prompt(text="Hello")), []
    for text, hh, judge, tokens in completions:
        one = whole.completions.add(text=text)
        for stage, value in (("reward/hh", hh), ("reward/judge", judge)):
            one.scores.append(rollout.StageScore(stage=stage, score=common.Score(value=value)))
        one.scores[0].score.components["tone"] = hh / 2
        mask = np.ones(tokens, np.float32)
        mask[-1] = 0
        samples.append(
            Sample(
                prompt_ids=np.arange(2, dtype=np.int32),
                completion_ids=np.arange(tokens, dtype=np.int32),
                behaviour_logprobs=np.full(tokens, -1.0, np.float32),
                reference_logprobs=np.full(tokens, -1.5, np.float32),
                loss_mask=mask,
                score=hh,
                ended=True,
            )
        )
    return whole, samples


def test_a_stage_without_weight_is_the_second_opinion(tmp_path: Path) -> None:
    """Every stage and component is a part; the judge of weight 0 is the annotator; masked tokens do not count."""
    batch = [group(("a", 1.0, 4.0, 3)), group(("b", 3.0, 0.0, 5))]
    found = Watch(spec_of(), tmp_path).seen(1, batch, {})
    assert found["rewards/hh/mean"] == found["annotator/mean"] == 2
    assert (found["rewards/hh.tone/mean"], found["rewards/judge/mean"]) == (1, 2)
    assert found["annotator/score_correlation"] == pytest.approx(-1)
    [worst] = [json.loads(line) for line in (tmp_path / "worst_samples.jsonl").read_text().splitlines()]
    assert (worst["completion"], worst["prompt"], worst["length"], worst["kl"]) == ("b", "Hello", 4, 2.0)
    assert worst["parts"] == {"hh": 3.0, "hh.tone": 1.5, "judge": 0.0}


def test_of_a_branch_no_kl_is_told(tmp_path: Path) -> None:
    """Under rollout.reference = branch completions come without the reference's log-probs: a KL to 0 would be none."""
    rollout = TABLES["rollout"] | {"reference": "branch"}
    watch = Watch(RunSpec.model_validate(TABLES | {"rollout": rollout}), tmp_path)
    watch.seen(1, [group(("a", 1.0, 4.0, 3))], {})
    [worst] = [json.loads(line) for line in (tmp_path / "worst_samples.jsonl").read_text().splitlines()]
    assert worst["kl"] is None
    assert worst["length"] == 2


def test_a_rule_goes_before_it(tmp_path: Path) -> None:
    """The rule that is named scores the text; here it counts the letter a."""
    watch = Watch(spec_of(annotator_rule="regex:mode=count,pattern=a"), tmp_path)
    found = watch.seen(1, [group(("aaa", 0.0, 9.0, 2), ("a", 1.0, 9.0, 2))], {})
    assert (found["annotator/mean"], found["annotator/std"]) == (2, 1)


def test_an_alarm_keeps_its_line_and_is_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However its numbers move; gone when it is over. A resume knows the line and logs nothing."""
    watch, rows = Watch(spec_of(), tmp_path), []
    for step, length in enumerate((10.0, 16.0, 17.0), 1):
        row = {"completions/mean_length": length}
        row |= watch.seen(step, [group(("a", 1.0, 4.0, 3))], row) | {"step": step}
        rows.append(row)
    line = "alarm length_drift at step 2: completions have 1.60 times the length of the first"
    assert watch.warnings == [line]
    assert capsys.readouterr().out.count("length_drift") == 1
    resumed = Watch(spec_of(), tmp_path)
    resumed.resume(rows)
    assert resumed.warnings == [line]
    assert capsys.readouterr().out == ""
    resumed.seen(4, [group(("a", 1.0, 4.0, 3))], {"completions/mean_length": 11.0})
    assert resumed.warnings == []
