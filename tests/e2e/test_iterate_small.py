"""`trimtab iterate` with everything small: two rounds over real processes, ended in the middle and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.iterate import state
from orchestrator.iterate.course import Course
from orchestrator.iterate.drive import STATE_FILE, run_iterate
from orchestrator.local.options import RunOptions
from orchestrator.local.toml import to_toml
from services.common.errors import Mismatch
from services.models.reward_model import load_reward_model
from tests.fakes.small_runs import rows_of, run_tables
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder

PROMPTS, HELD_OUT, COMPLETIONS, STEPS = 12, 4, 2, 2


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """run.toml with a tiny chat model, and prompts to train on and to hold out."""
    make_tiny_causal(tmp_path / "model")
    make_tiny_encoder(tmp_path / "encoder")
    rows = [
        {
            "prompt_id": f"p{at}",
            "split": "train" if at < PROMPTS else "held_out",
            "prompt": [{"role": "user", "content": f"Tell me about number {at}"}],
        }
        for at in range(PROMPTS + HELD_OUT)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables: dict[str, Any] = run_tables(tmp_path) | {"steps": STEPS, "sampling": {"max_new_tokens": 16}}
    del tables["reward_model"]
    tables["iterate"] = {
        "rounds": 2,
        "reference": "initial",
        "answers": 3,
        "reward_base": str(tmp_path / "encoder"),
        "reward_batch_pairs": 8,
        "annotator_rule": "regex:mode=count,pattern=[ -~]",
        "held_out_prompts": HELD_OUT,
        "completions": COMPLETIONS,
        "call_prompts": 5,
        "stop_on_plateau": False,
    }
    path = tmp_path / "run.toml"
    path.write_text(to_toml(tables))
    return path


class Ended(Exception):
    """Somebody pulled the plug."""


@pytest.mark.timeout(600)
def test_rounds_that_are_ended_in_the_middle_are_taken_up_again(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on file stays; each round has its own reward model, swapped in for the second one and pinned by its
    digest; every version meets every earlier one on all held-out prompts, and the page shows all of them."""
    out = tmp_path / "rounds"

    async def pulled(*_: object) -> None:
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(Course, "_compare", pulled)
        with pytest.raises(Ended):
            run_iterate(run_file, RunOptions(out=out))
    before = (out / "rounds" / "01" / "answers-0.jsonl").read_bytes()
    with pytest.raises(Mismatch, match="begun with reference = initial"):
        run_iterate(run_file, RunOptions(out=out, resume=True, overrides=('iterate.reference="previous"',)))
    assert run_iterate(run_file, RunOptions(out=out, resume=True)) == 0
    assert (out / "rounds" / "01" / "answers-0.jsonl").read_bytes() == before
    found = state.read(out / STATE_FILE)
    assert found is not None
    assert [one.done for one in found.rounds] == [list(state.PHASES)] * 2
    for one in found.rounds:
        folder = out / "rounds" / f"{one.number:02d}"
        model = load_reward_model(str(folder / "reward_model"), threads=1)
        assert model.facts().model_digest == one.reward_digest
        assert [row["step"] for row in rows_of(folder)] == list(range(1, STEPS + 1))
        assert one.comparisons == len((folder / "pairs.jsonl").read_text().splitlines())
    assert found.rounds[0].reward_digest != found.rounds[1].reward_digest
    assert [row.version for row in found.rounds[1].against] == [0, 1]
    assert {row.comparisons for one in found.rounds for row in one.against} == {HELD_OUT * COMPLETIONS}
    both = [(out / "rounds" / "02" / f"answers-{version}.jsonl").is_file() for version in (0, 1)]
    assert both == [True, True]
    ratings = json.loads((out / "ratings.json").read_text())
    assert {one["subject"] for one in ratings} == {"policy@0 (initial)", "policy@1", "policy@2"}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["reference"], summary["policy_init"]) == (2, "initial", "previous")
    page = (out / "report.html").read_text()
    assert "policy@2" in page
    assert "<svg" in page
    logs = "".join(path.read_text() for path in (out / "logs").glob("*.log"))
    assert "Traceback" not in logs
