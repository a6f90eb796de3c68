"""The reward-model job around its training: what it refuses before hours go into it, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.errors import AlreadyExists, InvalidInput
from services.learner.jobs.comparisons import Compared, Win
from services.learner.jobs.reward_job import RewardJob, readable, run_job
from services.learner.jobs.reward_model import RewardTraining
from services.models.reward_model import RewardModel, new_reward_model
from tests.fakes.tiny_models import CHAT_TEMPLATE, make_tiny_causal

OPTIONS = RewardTraining(learning_rate=1e-3, held_out_share=0.3)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
)


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    made = new_reward_model(str(make_tiny_causal(tmp_path / "base")), dtype="float32", threads=1)
    made.tokenizer.chat_template = NO_SYSTEM
    return made


def compared(role: str, place: str) -> Compared:
    return Compared(messages=((role, "hi"),), answers=("a", "b"), wins=(Win(0, 1),), place=place)


def test_prompts_that_the_template_refuses_are_told_with_their_place(
    model: RewardModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the training, and left out and counted where bad rows are."""
    prompts = [compared("user", "f:1"), compared("system", "f:2"), compared("system", "f:3")]
    with pytest.raises(InvalidInput, match=r"^f:2: prompt: the chat template refuses .* no system"):
        readable(model, prompts, skip=False)
    assert readable(model, prompts, skip=True) == prompts[:1]
    assert capsys.readouterr().err.startswith("2 prompts left out, first f:2: prompt: the chat template")


def job(tmp_path: Path, **given: Path) -> RewardJob:
    base, pairs = make_tiny_causal(tmp_path / "base"), tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{at}", "chosen": "yes", "rejected": "no"} for at in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made: dict[str, Path] = {"out": tmp_path / "reward"} | given
    return RewardJob(pairs=str(pairs), model=str(base), threads=1, dtype="float32", **made)


def test_the_report_may_lie_where_nothing_is_yet(tmp_path: Path) -> None:
    """It is a copy of what lies in the folder, which a second run replaces."""
    first = job(tmp_path, report=tmp_path / "reports" / "one.json")
    for _ in range(2):
        run_job(first, OPTIONS)
    text = (tmp_path / "reward" / "training.json").read_text()
    assert (tmp_path / "reports" / "one.json").read_text() == text
    assert json.loads(text)["train_pairs"] == 6


def test_somebody_elses_folder_is_refused_before_the_training(tmp_path: Path) -> None:
    """The base model's, for one: it is no reward model, and stays as it is."""
    with pytest.raises(AlreadyExists, match="name another folder"):
        run_job(job(tmp_path, out=tmp_path / "base"), OPTIONS)
    assert (tmp_path / "base" / "config.json").is_file()


def test_one_reference_answer_sets_no_scale(tmp_path: Path) -> None:
    """However often it stands there; told before the training, with its file."""
    reference = tmp_path / "reference.jsonl"
    reference.write_text('{"prompt": "hi", "completion": "yes"}\n' * 3)
    with pytest.raises(InvalidInput, match=r"reference.jsonl: one answer sets no scale"):
        run_job(job(tmp_path, reference=reference), OPTIONS)
