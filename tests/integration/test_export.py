"""A run's model leaves it as a plain Hugging Face folder that generates what the policy would."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.export.folder import export
from orchestrator.iterate import state
from orchestrator.local.in_process import run_in_process
from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import write_spec
from services.common.errors import AlreadyExists, Corrupted, NotFound, UserError
from services.models.loading import load_causal, serving_state
from services.models.manifest import entries_of, whole_digest
from services.policy.engines.base import Request, Sampling
from services.policy.engines.transformers_engine import TransformersEngine
from tests.fakes.small_runs import make_files, program, small_spec
from tests.fakes.tiny_runs import model_spec

PROMPT, TOKENS = "Count to 7", 12


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A run of two steps that is through."""
    folder = tmp_path_factory.mktemp("export")
    spec = small_spec(make_files(folder), "steps=2")
    layout = RunLayout.prepare(folder / "run")
    write_spec(layout, spec)
    run_in_process(spec, layout.root)
    return layout


def test_what_is_exported_is_what_was_published(layout: RunLayout, tmp_path: Path) -> None:
    """By the command; transformers alone loads it: the published digest, and the greedy tokens of the policy."""
    out = tmp_path / "mine"
    done = program("orchestrator", "export", str(layout.root), "--out", str(out))
    assert (done.returncode, done.stdout.strip()) == (0, str(out)), done.stderr
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    published = json.loads((layout.root / "published.json").read_text())
    assert whole_digest(entries_of(serving_state(model))) == published["digest"]
    ids = tokenizer(PROMPT, return_tensors="pt")
    generated = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
    engine = TransformersEngine(load_causal(model_spec(layout.root / "model")))
    request = Request(
        prompt_ids=ids["input_ids"][0].numpy().astype(np.int32),
        sampling=Sampling(temperature=0.0, max_new_tokens=TOKENS),
    )
    [draft] = engine.generate([request], threading.Event())
    engine.close()
    assert len(draft.token_ids) > 0
    assert generated.tolist() == draft.token_ids.tolist()
    text = (out / "README.md").read_text()
    assert f"| Digest of the weights | `{published['digest']}` |" in text
    assert "| Steps done | 2 of 2 |" in text
    assert "## In training" in text


def test_a_run_on_the_way_gives_its_newest_checkpoint(layout: RunLayout, tmp_path: Path) -> None:
    """Without model/ the card says after how many steps, and step 10 is newer than step 9."""
    run = tmp_path / "run"
    shutil.copytree(layout.root, run)
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / "step-000010")
    shutil.copytree(run / "checkpoints" / "step-000010", run / "checkpoints" / "step-000009")
    (run / "checkpoints" / "step-000010" / "model" / "marked").touch()
    out = export(RunLayout(run), tmp_path / "out")
    assert (out / "marked").exists()
    assert "| Steps done | 10 of 2 |" in (out / "README.md").read_text()


def test_a_checkpoint_is_newer_than_the_model_of_before(layout: RunLayout, tmp_path: Path) -> None:
    """A run that was resumed for more steps has model/ of its first end until its second."""
    run = tmp_path / "run"
    shutil.copytree(layout.root, run)
    shutil.copytree(run / "checkpoints" / "step-000002", run / "checkpoints" / "step-000010")
    out = export(RunLayout(run), tmp_path / "out")
    assert "| Steps done | 10 of 2 |" in (out / "README.md").read_text()


def test_rounds_give_their_last_model(layout: RunLayout, tmp_path: Path) -> None:
    """The last round's that has trained, not that of one which is under way; the card names what it began from."""
    run = RunLayout.prepare(tmp_path / "run")
    shutil.copy(layout.run_file, run.run_file)
    ended = [state.Round(number=number, done=[*state.PHASES]) for number in (1, 2)]
    rounds = [*ended, state.Round(number=3)]
    told = state.Rounds(reference="initial", policy_init="previous", rounds=rounds)
    state.write(run.root / state.STATE_FILE, told)
    for number in ("01", "02", "03"):
        shutil.copytree(layout.root, run.root / "rounds" / number)
        (run.root / "rounds" / number / "model" / f"of-{number}").touch()
    out = export(run, tmp_path / "out")
    assert (out / "of-02").exists()
    card = (out / "README.md").read_text()
    assert f"from `{run.root}/rounds/01/model`" in card
    assert f"came from `{run.root}/rounds/02/reward_model`" in card
    assert f"KL penalty refers to `{small_spec(layout.root.parent).model.path}`" in card
    assert "## In training" in card
    state.write(run.root / state.STATE_FILE, told.model_copy(update={"rounds": [state.Round(number=1)]}))
    with pytest.raises(NotFound, match="no round has trained one"):
        export(run, tmp_path / "none")
    given = told.model_copy(update={"made_with": {"iterate.learn": "demonstrations"}})
    state.write(run.root / state.STATE_FILE, given)
    with pytest.raises(UserError, match=r"rounds/02/model is a plain folder already"):
        export(run, tmp_path / "none")


def test_what_cannot_be_exported_is_told(layout: RunLayout, tmp_path: Path) -> None:
    """A folder in use; a run without a model; a run.toml that is none. Nothing is written."""
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    with pytest.raises(AlreadyExists, match="is there already"):
        export(layout, used)
    empty = RunLayout.prepare(tmp_path / "empty")
    with pytest.raises(NotFound, match="has no model yet"):
        export(empty, tmp_path / "none")
    run = tmp_path / "run"
    shutil.copytree(layout.root, run)
    (run / "run.toml").write_text("steps = 2\n")
    with pytest.raises(Corrupted, match=r"run\.toml"):
        export(RunLayout(run), tmp_path / "none")
    assert not list(tmp_path.glob("*none*"))
