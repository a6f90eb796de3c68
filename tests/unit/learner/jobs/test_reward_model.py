"""The reward model's training: its loss by hand, whatever the micro-batches; dropout in training alone."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.common.errors import InvalidInput
from services.learner.jobs import reward_model as job
from services.learner.jobs.comparisons import Compared, Win, batches
from services.models.reward_model import RewardModel, new_reward_model
from services.models.scorer import ScoreText
from services.models.trunk import layers_of
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_encoder

OPTIONS = job.RewardTraining(
    learning_rate=1e-2, batch_pairs=100, train_embeddings=True, normalise_before=False
)
BASES = {"causal": make_tiny_causal, "encoder": make_tiny_encoder}


def ranked(prompt: str, *answers: str) -> Compared:
    """All comparisons of answers that stand best first."""
    wins = [Win(one, other) for one in range(len(answers)) for other in range(one + 1, len(answers))]
    return Compared(messages=(("user", prompt),), answers=answers, wins=tuple(wins), group=prompt)


PROMPTS = [
    ranked("hi", "hello there", "hello", "no"),
    ranked("why?", "because of it", "x"),
    ranked("so", "a b", "c"),
]


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(BASES[request.param](tmp_path / "base"))


def made(base: str) -> RewardModel:
    return new_reward_model(base, dtype="float32", threads=1, seed=3, max_tokens=64)


@pytest.fixture
def model(base: str) -> RewardModel:
    return made(base)


def update(model: RewardModel, options: job.RewardTraining) -> float:
    """One step at rate 0 on all comparisons: the loss, and no change."""
    batch = batches(PROMPTS, 100, (1,))[0]
    encoded = [[model.encode(row) for row in job.rows_of(prompt)] for prompt in batch]
    return job.update(model, batch, encoded, options, job.make_optimiser(model, options, 1e-2), 0.0)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("budget", [1, 64, 8192])
def test_the_loss_is_the_mean_over_all_comparisons(model: RewardModel, budget: int, prepared: bool) -> None:
    """-log sigmoid of the difference of scores, averaged over the five pairs, for any cut into micro-batches and
    whether or not padding is left out and what answers begin with is shared."""
    expected = 0.0
    for prompt in PROMPTS:
        scores = model.score(job.rows_of(prompt))
        for win in prompt.wins:
            difference = torch.tensor(scores[win.better] - scores[win.worse])
            expected -= float(torch.nn.functional.logsigmoid(difference)) / 5
    if prepared:
        model.prepare_training(dropout=False)
        assert model.forests == (model.settings.pooling == "last")
        assert model.packed == (model.settings.pooling == "mean")
    found = update(model, replace(OPTIONS, micro_batch_tokens=budget))
    assert found == pytest.approx(expected, rel=1e-5)


def test_margins_are_better_minus_worse_in_order(model: RewardModel) -> None:
    """Each pair's margin is the difference of its own two scores, though answers are scored once."""
    scored = []
    for prompt in PROMPTS:
        scores = [model.score([row])[0] for row in job.rows_of(prompt)]
        scored += [scores[win.better] - scores[win.worse] for win in prompt.wins]
    assert job.margins(model, PROMPTS) == pytest.approx(scored, abs=1e-5)
    model.prepare_training(dropout=False)
    assert job.margins(model, PROMPTS) == pytest.approx(scored, abs=1e-5)


@pytest.mark.parametrize("prepared", [False, True])
def test_dropout_is_on_in_training_and_off_after_it(tmp_path: Path, prepared: bool) -> None:
    """With dropout two passes over the same batch differ and scores afterwards do not."""
    model = made(str(make_tiny_encoder(tmp_path / "encoder")))
    if prepared:
        model.prepare_training(dropout=True)
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
        trained = made(folder)
        torch.manual_seed(11)
        job.train(trained, PROMPTS, replace(OPTIONS, dropout=0.2, epochs=2, held_out_share=0.4))
        found.append((job.margins(trained, PROMPTS), float(torch.rand(()))))
    torch.manual_seed(11)
    assert found[0] == found[1]
    assert found[0][1] == float(torch.rand(()))


def test_it_learns_a_ranking(model: RewardModel) -> None:
    """After some passes every pair that it was shown is ranked as it was told."""
    report = job.train(
        model,
        PROMPTS,
        replace(OPTIONS, epochs=30, normalise_before=True),
        held_out=[ranked("held", "e f", "g")],
    )
    assert report.history[-1]["loss"] < report.history[0]["loss"] / 2
    assert all(margin > 0 for margin in job.margins(model, PROMPTS))
    assert (report.train_pairs, report.held_out_pairs, len(report.margins)) == (5, 1, 1)


def test_reference_answers_score_mean_0_deviation_1_before_and_after(model: RewardModel) -> None:
    """Gain and bias are set by the reference answers at either end, so that training begins on that scale too."""
    reference = [ScoreText((("user", "r"),), text) for text in ("one", "two", "three and more", "")]
    job.train(
        model, PROMPTS, replace(OPTIONS, normalise_before=True, held_out_share=0.4), reference=reference
    )
    scores = model.score(reference)
    assert statistics.fmean(scores) == pytest.approx(0.0, abs=1e-4)
    assert statistics.pstdev(scores) == pytest.approx(1.0, rel=1e-4)


def test_answers_that_score_alike_set_no_scale(model: RewardModel) -> None:
    """Their deviation is none: a gain of a million would be in every score from then on."""
    same = [ScoreText((("user", "r"),), "one")] * 3
    with pytest.raises(InvalidInput, match="the 3 answers that the scale is set by all score the same"):
        job.train(model, PROMPTS, replace(OPTIONS, normalise_before=True, held_out_share=0.4), reference=same)


def test_frozen_layers_are_not_trained(model: RewardModel) -> None:
    """Causal or encoder: the lowest stay as they are, and as many as there are is refused."""
    lower, upper = layers_of(model.backbone)
    before = [value.clone() for value in lower.parameters()]
    job.train(model, PROMPTS, replace(OPTIONS, frozen_layers=1, held_out_share=0.4))
    assert all(torch.equal(one, other) for one, other in zip(before, lower.parameters(), strict=True))
    assert all(value.requires_grad for value in upper.parameters())
    with pytest.raises(InvalidInput, match="frozen_layers = 2, but the model has 2 layers"):
        job.train(model, PROMPTS, replace(OPTIONS, frozen_layers=2, held_out_share=0.4))


def test_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    """A step with activations made anew gives the same weights."""
    folder = str(make_tiny_causal(tmp_path / "causal"))
    found = []
    for wanted in (False, True):
        model = made(folder)
        job.train(model, PROMPTS, replace(OPTIONS, gradient_checkpointing=wanted, held_out_share=0.4))
        found.append(job.margins(model, PROMPTS))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_pretraining_comes_first_and_without_what_is_held_out(tmp_path: Path) -> None:
    """A model that was pretrained on the same ranking begins its training where the other one has yet to come."""
    folder = str(make_tiny_causal(tmp_path / "causal"))
    held = [ranked("held", "e f", "g")]
    options = replace(OPTIONS, pretraining_epochs=20, pretraining_learning_rate=1e-2)
    plain = job.train(made(folder), PROMPTS, options, held_out=held)
    after = job.train(made(folder), PROMPTS, options, pretraining=[*PROMPTS, *held], held_out=held)
    assert (plain.pretraining_pairs, after.pretraining_pairs) == (0, 5)
    first = next(row for row in after.history if row["step"] == 20)
    assert first["loss"] < plain.history[0]["loss"] / 2
