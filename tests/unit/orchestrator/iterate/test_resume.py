"""With which settings a run of rounds goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.iterate import state
from orchestrator.iterate.drive import TOLD_FILE, begun, resolved
from orchestrator.iterate.options import IterateRun
from orchestrator.local.layout import RunLayout
from services.common.errors import Mismatch, UserError


def start(
    folder: Path,
    *,
    seed: int = 1,
    split: str = "train",
    model: str = "m",
    around: dict[str, Any] | None = None,
    **told: Any,
) -> state.Rounds:
    """Begin the run in this folder, or go on, with the prompts that lie beside it."""
    tables = {
        "seed": seed,
        "steps": 2,
        "model": {"path": model},
        "data": {"prompts": "prompts.jsonl", "split": split},
        **(around or {}),
        "iterate": {"demonstrations": "given.jsonl", **told},
    }
    spec, material = resolved(folder / "run.toml", IterateRun.model_validate(tables))
    return begun(RunLayout.prepare(folder / "run", resume=(folder / "run").exists()), spec, material)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Question {at}", "split": "train" if at < 3 else "held_out"} for at in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "given.jsonl").write_text("{}\n")
    start(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"completions": 2}, "iterate.completions = 4, not 2"),
        ({"answers": 3}, "iterate.answers = 5, not 3"),
        ({"earlier_answers": 2}, "iterate.earlier_answers = 1, not 2"),
        ({"learn": "demonstrations"}, "iterate.learn = comparisons, not demonstrations"),
        ({"seed": 2}, "seed = 1, not 2"),
        ({"split": "held_out"}, "data.split = train, not held_out"),
        ({"annotator_rule": ""}, "iterate.annotator_rule = sentiment, not "),
        ({"model": "other"}, "model.path = m, not other"),
        ({"around": {"sampling": {"temperature": 0.7}}}, "sampling.temperature = 1.0, not 0.7"),
    ],
)
def test_what_the_files_were_made_with_stays(folder: Path, changed: dict[str, Any], told: str) -> None:
    """A resume with another number of answers, draw or split is refused by name, and what the run was told stays."""
    before = (folder / "run" / TOLD_FILE).read_text()
    with pytest.raises(Mismatch, match=re.escape(f"was begun with {told}: its files do not fit")):
        start(folder, **changed)
    assert (folder / "run" / TOLD_FILE).read_text() == before


@pytest.mark.parametrize(
    ("around", "told"),
    [
        (
            {"rollout": {"slip": ["policy", "reference", "reward/hh"]}},
            "one scoring stage, reward, .* not reward/hh",
        ),
        (
            {"reward_sources": [{"source": "rule:length"}]},
            "each round fits a reward model of its own",
        ),
        ({"algorithm": {"kind": "dpo"}}, "algorithm.kind = dpo has no rollouts"),
    ],
)
def test_a_run_that_a_rounds_model_cannot_reward_is_refused_first(
    folder: Path, around: dict[str, Any], told: str
) -> None:
    """Not when all is labelled."""
    with pytest.raises(UserError, match=told):
        start(folder, around=around)


def test_other_prompts_are_another_run(folder: Path) -> None:
    """Answers on file belong to the prompts that were there, by their place: a file with one more is refused."""
    with (folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "One more"}\n')
    with pytest.raises(
        Mismatch, match=r"begun with data\.prompts \(SHA-256\) = [0-9a-f]{64}, not [0-9a-f]{64}"
    ):
        start(folder)


def test_what_no_file_depends_on_may_change(folder: Path) -> None:
    """More rounds, other patience, other steps of RL: the run goes on with them."""
    start(folder, around={"steps": 4}, rounds=9, stop_on_plateau=False, label_timeout_seconds=5.0, labels=40)
    assert json.loads((folder / "run" / TOLD_FILE).read_text())["rounds"] == 9
