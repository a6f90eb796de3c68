"""What benchmarks.scoring measures with: texts, and a direct loop that scores as the service does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.peers.scalar_model import ScalarModel, Settings, TextEncoder
from benchmarks.scoring_setup import Limit, dialogues, end_text
from services.models.reward_model import load_reward_model
from services.models.scorer import ScoreText
from tests.fakes.tiny_models import make_tiny_reward_model

DIALOGUE = "\n\nHuman: {}\n\nAssistant: Why?\n\nHuman: Because.\n\nAssistant: {}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = make_tiny_reward_model(tmp_path_factory.mktemp("models") / "tiny")
    # As the benchmark does with its own model: plain text in, nothing around it.
    for template in folder.glob("chat_template*"):
        template.unlink()
    config = folder / "tokenizer_config.json"
    told = json.loads(config.read_text())
    told.pop("chat_template", None)
    config.write_text(json.dumps(told))
    return Settings(folder=str(folder), threads=1, dtype="float32", max_tokens=96)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        for number in range(12):
            chosen = DIALOGUE.format("Tell me more. " * (number % 5), f"Number {number}, then.")
            lines.write(json.dumps({"chosen": chosen, "rejected": ""}) + "\n")
    return path


def test_a_dialogue_parts_at_its_last_answer(file: Path) -> None:
    """The prompt ends with the last "Assistant:", and the whole is what the service makes of both."""
    first = dialogues(file, 1, "<end>")[0]
    assert first.prompt.endswith("Because.\n\nAssistant:")
    assert first.completion == "Number 0, then."
    assert first.whole == f"{first.prompt}\n{first.completion}<end>"


def test_too_few_dialogues_are_told(file: Path) -> None:
    """A file with fewer dialogues than the measurement asks for ends it."""
    with pytest.raises(SystemExit, match="only 12 dialogues of 13"):
        dialogues(file, 13, "")


def test_settings_survive_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer reads from its environment what the benchmark wrote there."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == settings


@pytest.mark.parametrize("batch_rows", [1, 5, 32])
def test_the_limit_scores_as_the_service_does(settings: Settings, file: Path, batch_rows: int) -> None:
    """Sorted or not, padded or not: each text's score is the reward model's own, in the texts' order."""
    texts = dialogues(file, 12, end_text(Path(settings.folder)))
    encoder = TextEncoder(settings)
    rows = tuple(tuple(encoder.encode(text.whole)) for text in texts)
    limit = Limit(ScalarModel(settings), rows, batch_rows)
    _, scores = limit.run()
    service = load_reward_model(settings.folder, dtype="float32", threads=1)
    asked = [ScoreText((("user", text.prompt),), text.completion) for text in texts]
    assert scores == pytest.approx(service.score(asked), abs=1e-5)
    assert limit.tokens == sum(len(service.encode(each).ids) for each in asked)
    assert max(map(len, rows)) == 96
