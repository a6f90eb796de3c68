"""`trimtab iterate` with everything small: two rounds over real processes, labelled by people."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.iterate import state
from orchestrator.iterate.drive import run_iterate
from orchestrator.local.options import RunOptions
from orchestrator.local.toml import to_toml
from services.common.errors import Mismatch
from services.models.reward_model import load_reward_model
from tests.fakes.small_runs import BATCH, rows_of, run_tables
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder
from trimtab.clients.errors import TrimtabClientError
from trimtab.clients.preference import PreferenceClient
from trimtab.preference.v1 import preference_pb2 as preference

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
    tables["rollout"]["keep"] = True
    del tables["reward_model"]
    tables["iterate"] = {
        "rounds": 2,
        "reference": "initial",
        "answers": 3,
        "reward_base": str(tmp_path / "encoder"),
        "reward_batch_pairs": 8,
        "annotator_rule": "",
        "held_out_prompts": HELD_OUT,
        "completions": COMPLETIONS,
        "call_prompts": 5,
        "stop_on_plateau": False,
    }
    path = tmp_path / "run.toml"
    path.write_text(to_toml(tables))
    return path


class People:
    """Somebody who prefers the answer with more letters that are easily typed, by the service's API; equals are a tie.

    Looks for the service where the run says that it is: it comes and goes.
    """

    def __init__(self, out: Path) -> None:
        self.labels = 0
        self._out = out
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> People:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gone.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._gone.wait(0.2):
            try:
                services = json.loads((self._out / "endpoints.json").read_text())["services"]
                with PreferenceClient(services["preference"]["grpc"], attempts=1) as client:
                    tasks = client.next_tasks("ann", max_tasks=20)
                    self.labels += client.record([_label(task) for task in tasks])
            except (OSError, KeyError, ValueError, TrimtabClientError):
                continue


def _label(task: preference.Task) -> preference.Comparison:
    texts = {one.candidate_id: one.text for one in task.item.candidates}
    first, second = (
        sum(" " <= letter <= "~" for letter in texts[one])
        for one in (task.first_candidate_id, task.second_candidate_id)
    )
    return preference.Comparison(
        task_id=task.task_id,
        annotator="ann",
        first_candidate_id=task.first_candidate_id,
        second_candidate_id=task.second_candidate_id,
        choice=preference.CHOICE_TIE
        if first == second
        else preference.CHOICE_FIRST
        if first > second
        else preference.CHOICE_SECOND,
    )


@pytest.mark.timeout(600)
def test_rounds_that_people_label_and_that_are_killed_in_the_middle(run_file: Path, tmp_path: Path) -> None:
    """Killed while labels are still missing: what was there stays. Each round has its own reward model, and every
    rollout that it trained on was scored by that one; every version meets every earlier one on all held-out prompts,
    and the page shows all of them."""
    out = tmp_path / "rounds"
    with People(out) as people:
        shown = killed(run_file, out, lambda: people.labels > 0)
        before = (out / "rounds" / "01" / "answers-0.jsonl").read_bytes()
        with pytest.raises(Mismatch, match="begun with reference = initial"):
            run_iterate(
                run_file, RunOptions(out=out, resume=True, overrides=('iterate.reference="previous"',))
            )
        assert run_iterate(run_file, RunOptions(out=out, resume=True)) == 0
    assert f"0 of {PROMPTS * 3} compared, {PROMPTS * 3} missing" in shown
    assert "people new NAME --config" in shown
    assert (out / "rounds" / "01" / "answers-0.jsonl").read_bytes() == before
    assert people.labels == 2 * PROMPTS * 3 + 3 * HELD_OUT * COMPLETIONS
    found = state.read(out / state.STATE_FILE)
    assert found is not None
    assert [one.done for one in found.rounds] == [list(state.PHASES)] * 2
    for one in found.rounds:
        folder = out / "rounds" / f"{one.number:02d}"
        model = load_reward_model(str(folder / "reward_model"), threads=1)
        assert model.facts().model_digest == one.reward_digest
        assert [row["step"] for row in rows_of(folder)] == list(range(1, STEPS + 1))
        assert one.comparisons == len((folder / "pairs.jsonl").read_text().splitlines())
        assert scales_of(folder) == {one.reward_digest}
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


def killed(run_file: Path, out: Path, time_to: Callable[[], bool]) -> str:
    """Start the rounds and kill them when it is time to; what they said."""
    command = [sys.executable, "-m", "orchestrator", "iterate", str(run_file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not time_to():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.kill()
        return process.stderr.read()


def scales_of(folder: Path) -> set[str]:
    """The reward models that scored what a round was trained on."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((folder / "rollouts").glob("*.parquet"))]
    assert [len(rows) for rows in tables] == [BATCH] * STEPS
    return {json.loads(row["reward_models"])["reward"] for rows in tables for row in rows}
