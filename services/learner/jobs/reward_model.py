"""Trains a reward model on comparisons. Owns the course of training; what is computed stands in losses, evaluation.

    comparisons ─▶ split by prompt ─▶ [gain, bias on reference answers] ─▶ [pretraining] ─▶ training ─▶ gain, bias
                        └────────────────────── held-out prompts ──────────────────────▶ evaluation

All that was said of a prompt's answers is one element of a batch, in which each answer is read once and what the
answers begin with is read once for all of them. The loss is the mean over what was said: a comparison, a choice of the
best, or a ranking, whose pairs weigh one together. Gain and bias
make the reference answers score mean 0, deviation 1, before training and after (arXiv 1909.08593, 2.1); they are the
model's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from services.common.errors import InvalidInput
from services.learner.jobs.comparisons import Compared, batches, split_by_group, without
from services.learner.jobs.course import checkpointing, rate_factor
from services.learner.jobs.evaluation import Evaluation, Judged, accuracy, evaluate, judged
from services.learner.jobs.losses import Objective, said, said_loss
from services.models.dropout import dropping
from services.models.master_weights import MasterWeights, ParameterGroup
from services.models.reward_model import RewardModel
from services.models.scorer import Encoded, ScoreText
from services.models.trunk import freeze_lowest

# Answers that gain and bias are set by, where none are given for it: a deviation known to 4 %.
_NORMALISED_BY = 256
Progress = Callable[[int, int, float, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTraining:
    """How to train."""

    learning_rate: float = 1e-4
    epochs: int = 1
    batch_pairs: int = 32
    """Statements (comparisons, choices of the best) in a batch, at least; those of a prompt stay together."""
    held_out_share: float = 0.1
    frozen_layers: int = 0
    train_embeddings: bool = False
    dropout: float = 0.0
    """In training only. With few comparisons seen more than once it is what keeps them from being learned by heart."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    micro_batch_tokens: int = 8192
    gradient_checkpointing: bool = False
    """Keep no activations within layers: less memory for about a third more time."""
    normalise_before: bool = True
    pretraining_learning_rate: float = 1e-4
    pretraining_epochs: int = 1
    pretraining_objective: Objective = "binary"
    max_steps: int = 0
    """End training after so many updates; 0: when all batches are done."""
    evaluate_every: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plotted:
    """Length in characters and score of each held-out answer, for the plot."""

    lengths: list[int]
    scores: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """What came out."""

    evaluation: Evaluation
    train_pairs: int
    held_out_pairs: int
    pretraining_pairs: int
    steps: int
    seconds: float
    """Of training: from comparisons to trained weights, evaluation not counted."""
    plotted: Plotted
    margins: list[float]
    """Of each held-out pair, in the order of prompts: score of the better answer less that of the worse one."""
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    model: RewardModel,
    prompts: Sequence[Compared],
    options: RewardTraining,
    progress: Progress | None = None,
    *,
    pretraining: Sequence[Compared] = (),
    reference: Sequence[ScoreText] = (),
    held_out: Sequence[Compared] | None = None,
) -> RewardReport:
    """Train in place and report. Raises InvalidInput when either side of the split would be empty.

    pretraining: a larger set to train on first, less what is held out. reference: what gain and bias are set by.
    held_out: judge by these and train on all `prompts`; absent: some of them are held out.
    `progress` hears (updates done, updates in all, loss, accuracy on some held-out pairs) now and then.
    """
    if held_out is None:
        fit, held = split_by_group(prompts, options.held_out_share, options.seed)
    else:
        fit, held = without(prompts, held_out), list(held_out)
    if not fit or not held:
        raise InvalidInput(f"{len(prompts)} prompts are too few to train on and to hold some out")
    return _Course(model, fit, held, options, progress).run(without(pretraining, held), reference)


class _Course:
    """One training, from the split on."""

    def __init__(
        self,
        model: RewardModel,
        fit: list[Compared],
        held: list[Compared],
        options: RewardTraining,
        progress: Progress | None,
    ) -> None:
        self._model, self._fit, self._held = model, fit, held
        self._options, self._progress = options, progress
        self._watched = _first(held, 4 * options.batch_pairs, lambda one: len(one.pairs()))
        self._encoded: dict[int, list[Encoded]] = {}
        self._history: list[dict[str, float]] = []
        self._watching = 0.0

    def run(self, pretraining: Sequence[Compared], reference: Sequence[ScoreText]) -> RewardReport:
        options, model = self._options, self._model
        began = time.perf_counter()
        if not model.packed:
            model.prepare_training(dropout=bool(options.dropout))
        answers = [[row] for row in reference] or [
            rows_of(one) for one in _first(self._fit, _NORMALISED_BY, lambda one: len(one.answers))
        ]
        if options.normalise_before:
            model.normalised(answers)
        with _drawing(options.seed), checkpointing(model.backbone, options.gradient_checkpointing):
            if pretraining:
                self._stage(
                    pretraining,
                    options.pretraining_epochs,
                    options.pretraining_learning_rate,
                    options.pretraining_objective,
                    seed=(options.seed, 1),
                )
            steps = self._stage(self._fit, options.epochs, options.learning_rate, "ranked", (options.seed,))
        trained_gain = model.settings.gain
        model.normalised(answers)
        seconds = time.perf_counter() - began - self._watching
        scores = scores_of(model, self._held)
        stretch = trained_gain / model.settings.gain
        pairs = [
            pair
            for at, one in enumerate(self._held)
            for pair in judged(one, [stretch * s for s in scores[at]])
        ]
        flat = [score for one in scores for score in one]
        lengths = [len(answer) for one in self._held for answer in one.answers]
        return RewardReport(
            evaluation=evaluate(pairs, lengths, flat),
            train_pairs=sum(len(one.pairs()) for one in self._fit),
            held_out_pairs=len(pairs),
            pretraining_pairs=sum(len(one.pairs()) for one in pretraining),
            steps=steps,
            seconds=seconds,
            plotted=Plotted(lengths=lengths, scores=flat),
            margins=[pair.logit / stretch for pair in pairs],
            history=self._history,
        )

    def _stage(
        self,
        prompts: Sequence[Compared],
        epochs: int,
        rate: float,
        objective: Objective,
        seed: tuple[int, ...],
    ) -> int:
        """Some epochs over some prompts with an optimiser of their own; how many updates."""
        options = self._options
        optimiser = make_optimiser(self._model, options, rate)
        order = [
            batch
            for epoch in range(epochs)
            for batch in batches(prompts, options.batch_pairs, (*seed, epoch))
        ]
        order = order[: options.max_steps or None]
        before = len(self._history) and int(self._history[-1]["step"]) + 1
        for number, batch in enumerate(order):
            factor = rate_factor(number, len(order), options.warmup_share)
            encoded = [self._encode(prompt) for prompt in batch]
            loss = update(self._model, batch, encoded, options, optimiser, factor, objective)
            if number % options.evaluate_every == 0 or number == len(order) - 1:
                self._watch(before + number, before + len(order), loss)
        return len(order)

    def _encode(self, prompt: Compared) -> list[Encoded]:
        """The rows of a prompt; kept, since epochs come back to them."""
        found = self._encoded.get(id(prompt))
        if found is None:
            found = self._encoded[id(prompt)] = [self._model.encode(row) for row in rows_of(prompt)]
        return found

    def _watch(self, number: int, total: int, loss: float) -> None:
        began = time.perf_counter()
        reached = accuracy([pair.logit for pair in _pairs(self._model, self._watched)])
        self._history.append({"step": number, "loss": loss, "accuracy": reached})
        if self._progress:
            self._progress(number + 1, total, loss, reached)
        self._watching += time.perf_counter() - began


def _first(prompts: Sequence[Compared], count: int, size: Callable[[Compared], int]) -> list[Compared]:
    """The first prompts whose sizes come to so many together."""
    chosen: list[Compared] = []
    for prompt in prompts:
        if count <= 0:
            break
        chosen.append(prompt)
        count -= size(prompt)
    return chosen


def rows_of(prompt: Compared) -> list[ScoreText]:
    """What is scored of a prompt: each answer once."""
    return [ScoreText(prompt.messages, answer) for answer in prompt.answers]


def scores_of(model: RewardModel, prompts: Sequence[Compared]) -> list[list[float]]:
    """Scores (gain and bias in them) of each prompt's answers."""
    return model.family_scores([rows_of(prompt) for prompt in prompts])


def _pairs(model: RewardModel, prompts: Sequence[Compared]) -> list[Judged]:
    found = zip(prompts, scores_of(model, prompts), strict=True)
    return [pair for prompt, scores in found for pair in judged(prompt, scores)]


def margins(model: RewardModel, prompts: Sequence[Compared]) -> list[float]:
    """Score of the better answer less that of the worse one, for each pair, in order."""
    return [pair.logit for pair in _pairs(model, prompts)]


def make_optimiser(model: RewardModel, options: RewardTraining, rate: float) -> MasterWeights:
    """AdamW over what is trained; everything else is frozen here."""
    embeddings = model.backbone.get_input_embeddings()
    for parameter in embeddings.parameters():
        parameter.requires_grad_(options.train_embeddings)
    freeze_lowest(model.backbone, options.frozen_layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MasterWeights(
        [ParameterGroup(trained, rate)],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
    )


def update(
    model: RewardModel,
    batch: Sequence[Compared],
    encoded: Sequence[Sequence[Encoded]],
    options: RewardTraining,
    optimiser: MasterWeights,
    factor: float,
    objective: Objective = "ranked",
) -> float:
    """One optimiser step; the mean loss of the batch. What is compared with each other shares a micro-batch."""
    terms = said(batch, objective)
    gain, bias = model.settings.gain, model.settings.bias
    total = 0.0
    with dropping(model, model.backbone, options.dropout):
        for micro in model.family_batches(encoded, options.micro_batch_tokens):
            scores = gain * model.family_outputs([encoded[index] for index in micro]) + bias
            loss = said_loss(scores, [batch[index] for index in micro], objective) / terms
            loss.backward()
            optimiser.accumulate()
            total += float(loss.detach())
    optimiser.step(factor)
    return total


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Random numbers of torch by this seed in here, and as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
