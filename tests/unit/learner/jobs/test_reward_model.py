"""The reward model's training: its loss by hand, whatever the micro-batches; dropout in training alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.learner.jobs import reward_model as job
from services.learner.jobs.comparisons import Pair, batches, by_prompt
from services.models.reward_model import RewardModel, new_reward_model
from services.models.scorer import ScoreText
from tests.fakes.tiny_models import make_tiny_encoder

OPTIONS = job.RewardTraining(learning_rate=1e-2, batch_pairs=100, train_embeddings=True)


def ranked(prompt: str, *answers: str) -> list[Pair]:
    """All comparisons of answers that stand best first."""
    messages = (("user", prompt),)
    return [
        Pair(messages=messages, chosen=one, rejected=other, group=prompt)
        for at, one in enumerate(answers)
        for other in answers[at + 1 :]
    ]


PAIRS = [
    *ranked("hi", "hello there", "hello", "no"),
    *ranked("why?", "because of it", "x"),
    *ranked("so", "a b", "c"),
]


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    return new_reward_model(
        str(make_tiny_encoder(tmp_path / "encoder")), dtype="float32", threads=1, seed=3, max_tokens=64
    )


def update(model: RewardModel, options: job.RewardTraining) -> float:
    """One step at rate 0 on all pairs: the loss, and no change."""
    return job._update(
        model, batches(by_prompt(PAIRS), 100, (1,))[0], options, job._optimiser(model, options), 0.0
    )


@pytest.mark.parametrize("budget", [1, 64, 8192])
def test_the_loss_is_the_mean_over_all_comparisons(model: RewardModel, budget: int) -> None:
    """-log sigmoid of the difference of scores, averaged over the five pairs, for any cut into micro-batches."""
    expected = 0.0
    for pair in PAIRS:
        one, other = model.score([ScoreText(pair.messages, text) for text in (pair.chosen, pair.rejected)])
        expected -= float(torch.nn.functional.logsigmoid(torch.tensor(one - other))) / len(PAIRS)
    assert update(model, replace(OPTIONS, micro_batch_tokens=budget)) == pytest.approx(expected, rel=1e-5)


def test_margins_are_chosen_minus_rejected_in_order(model: RewardModel) -> None:
    """Each pair's margin is the difference of its own two scores, though answers are scored once."""
    scored = [
        model.score([ScoreText(p.messages, p.chosen)])[0]
        - model.score([ScoreText(p.messages, p.rejected)])[0]
        for p in PAIRS
    ]
    assert job.margins(model, PAIRS) == pytest.approx(scored, abs=1e-5)


def test_dropout_is_on_in_training_and_off_after_it(model: RewardModel) -> None:
    """With dropout two passes over the same batch differ and scores afterwards do not."""
    options = replace(OPTIONS, dropout=0.3)
    plain = update(model, OPTIONS)
    assert update(model, options) != update(model, options)
    assert update(model, OPTIONS) == plain
    row = [ScoreText((("user", "hi"),), "hello")]
    assert model.score(row) == model.score(row)


def test_training_is_the_seeds_and_leaves_other_random_numbers_alone(tmp_path: Path) -> None:
    """The same seed gives the same model, dropout and all; torch's own generator stands where it stood."""
    folder = str(make_tiny_encoder(tmp_path / "encoder"))
    found = []
    for _ in range(2):
        trained = new_reward_model(folder, dtype="float32", threads=1, seed=3, max_tokens=64)
        torch.manual_seed(11)
        job.train(trained, PAIRS, replace(OPTIONS, dropout=0.2, epochs=2, held_out_share=0.4))
        found.append((job.margins(trained, PAIRS), float(torch.rand(()))))
    torch.manual_seed(11)
    assert found[0] == found[1]
    assert found[0][1] == float(torch.rand(()))


def test_it_learns_a_ranking(model: RewardModel) -> None:
    """After some passes every pair that it was shown is ranked as it was told."""
    report = job.train(
        model, [*PAIRS, *ranked("held", "e f", "g")], replace(OPTIONS, epochs=30, held_out_share=0.25)
    )
    assert report.history[-1]["loss"] < report.history[0]["loss"] / 2
    assert report.train_pairs + report.held_out_pairs == len(PAIRS) + 1
