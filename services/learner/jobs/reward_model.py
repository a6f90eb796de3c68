"""Trains a reward model on comparisons and ends. Run as `python -m services.learner.jobs reward-model`.

    L = -mean log sigmoid(r(x, chosen) - r(x, rejected))      (arXiv 1909.08593, 2203.02155)

The mean runs over all comparisons of a batch, in which each answer is read once. Pairs are split by prompt, never
by row; the accuracy on held-out prompts stands beside that of "the longer answer wins". Gain and bias are set at the
end so that the answers seen score mean 0, deviation 1.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from services.common.errors import InvalidInput
from services.learner.jobs.comparisons import Compared, Pair, batches, by_prompt, split_by_group
from services.models.master_weights import MasterWeights, ParameterGroup
from services.models.packing import micro_batches
from services.models.reward_model import RewardModel, new_reward_model
from services.models.scorer import Encoded, ScoreText


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTraining:
    """How to train."""

    learning_rate: float = 1e-4
    epochs: int = 1
    batch_pairs: int = 32
    """At least; the comparisons of a prompt stay together."""
    held_out_share: float = 0.1
    frozen_layers: int = 0
    train_embeddings: bool = False
    dropout: float = 0.0
    """In training only. With few comparisons seen more than once it is what keeps them from being learned by heart."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    micro_batch_tokens: int = 8192
    evaluate_every: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """What came out, written as reward_model.json. Accuracies on held-out pairs, 95 % Wilson interval."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_longer_wins: float
    train_pairs: int
    held_out_pairs: int
    seconds: float
    history: list[dict[str, float]]


# Answers that gain and bias are set by.
_NORMALISED_BY = 512
Progress = Callable[[int, int, float, float], None]


def train(
    model: RewardModel, pairs: Sequence[Pair], options: RewardTraining, progress: Progress | None = None
) -> RewardReport:
    """Train in place and report. Raises InvalidInput when either side of the split would be empty.

    `progress` hears (updates done, updates in all, loss, accuracy on some held-out pairs) now and then.
    """
    started = time.perf_counter()
    fit, held = split_by_group(pairs, options.held_out_share, options.seed)
    if not fit or not held:
        raise InvalidInput(f"{len(pairs)} pairs are too few to train on and to hold some out")
    optimiser = _optimiser(model, options)
    prompts = by_prompt(fit)
    order = [
        batch
        for epoch in range(options.epochs)
        for batch in batches(prompts, options.batch_pairs, (options.seed, epoch))
    ]
    history: list[dict[str, float]] = []
    watched = held[: 4 * options.batch_pairs]
    with _drawing(options.seed):
        for number, batch in enumerate(order):
            loss = _update(
                model, batch, options, optimiser, _factor(number, len(order), options.warmup_share)
            )
            if number % options.evaluate_every == 0 or number == len(order) - 1:
                accuracy = _accuracy(margins(model, watched))
                history.append({"step": number, "loss": loss, "accuracy": accuracy})
                if progress:
                    progress(number + 1, len(order), loss, accuracy)
    model.normalised([row for prompt in prompts for row in _rows(prompt)][:_NORMALISED_BY])
    differences = margins(model, held)
    low, high = wilson(sum(d > 0 for d in differences), len(differences))
    return RewardReport(
        accuracy=_accuracy(differences),
        accuracy_low=low,
        accuracy_high=high,
        accuracy_longer_wins=_accuracy([float(len(p.chosen) - len(p.rejected)) for p in held]),
        train_pairs=len(fit),
        held_out_pairs=len(held),
        seconds=time.perf_counter() - started,
        history=history,
    )


def margins(model: RewardModel, pairs: Sequence[Pair]) -> list[float]:
    """Score of the chosen answer minus that of the rejected one, in order."""
    prompts = by_prompt(pairs)
    rows = [row for prompt in prompts for row in _rows(prompt)]
    scores = dict(zip(rows, model.score(rows), strict=True))
    return [
        scores[ScoreText(pair.messages, pair.chosen)] - scores[ScoreText(pair.messages, pair.rejected)]
        for pair in pairs
    ]


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _accuracy(differences: Sequence[float]) -> float:
    """Share of pairs ranked right, ties half."""
    return float(np.mean([0.5 if d == 0 else float(d > 0) for d in differences]))


def _optimiser(model: RewardModel, options: RewardTraining) -> MasterWeights:
    embeddings = model.backbone.get_input_embeddings()
    for parameter in embeddings.parameters():
        parameter.requires_grad_(options.train_embeddings)
    layers = model.backbone.layers if hasattr(model.backbone, "layers") else model.backbone.encoder.layer
    for layer in layers[: options.frozen_layers]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MasterWeights(
        [ParameterGroup(trained, options.learning_rate)],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
    )


def _factor(number: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then linear to 0."""
    warmup = max(1, round(warmup_share * total))
    return (number + 1) / warmup if number < warmup else max(0.0, (total - number) / max(1, total - warmup))


def _update(
    model: RewardModel,
    batch: Sequence[Compared],
    options: RewardTraining,
    optimiser: MasterWeights,
    factor: float,
) -> float:
    """One optimiser step; the mean loss of the batch. What is compared with each other shares a micro-batch."""
    encoded = [[model.encode(row) for row in _rows(prompt)] for prompt in batch]
    pairs = sum(len(prompt.wins) for prompt in batch)
    total = 0.0
    with _dropout(model, options.dropout):
        for micro in _micro_batches(encoded, options.micro_batch_tokens):
            outputs = model.head_outputs([row for index in micro for row in encoded[index]])
            better, worse = _wins([batch[index] for index in micro])
            loss = -torch.nn.functional.logsigmoid(outputs[better] - outputs[worse]).sum() / pairs
            loss.backward()
            optimiser.accumulate()
            total += float(loss.detach())
    optimiser.step(factor)
    return total


def _rows(prompt: Compared) -> list[ScoreText]:
    return [ScoreText(prompt.messages, answer) for answer in prompt.answers]


def _micro_batches(encoded: Sequence[Sequence[Encoded]], token_budget: int) -> list[list[int]]:
    """Indices of prompts, by padded tokens: a prompt counts as one row as long as all of its answers."""
    widest = max(len(rows) for rows in encoded)
    lengths = [widest * max(len(row.ids) for row in rows) for rows in encoded]
    return micro_batches(lengths, token_budget)


def _wins(prompts: Sequence[Compared]) -> tuple[list[int], list[int]]:
    """Rows of the better and of the worse answers, where the prompts' answers stand one after the other."""
    better, worse, start = [], [], 0
    for prompt in prompts:
        better += [start + one for one, _ in prompt.wins]
        worse += [start + other for _, other in prompt.wins]
        start += len(prompt.answers)
    return better, worse


@contextlib.contextmanager
def _dropout(model: RewardModel, share: float) -> Iterator[None]:
    """Dropout on in here, in the places where the model has it."""
    places = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for place in places:
        place.p = share
    model.train(share > 0)
    try:
        yield
    finally:
        for place in places:
            place.p = 0.0
        model.eval()


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Random numbers of torch by this seed in here, and as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def run_job(
    pairs_file: Path,
    model_path: str,
    out: Path,
    report_file: Path | None,
    options: RewardTraining,
    *,
    max_tokens: int,
    threads: int,
) -> None:
    """Read comparisons, train, write the model's folder (aside, then renamed) and the report."""
    from services.learner.jobs.pairs import load_pairs

    pairs = load_pairs(pairs_file)
    model = new_reward_model(model_path, threads=threads, seed=options.seed, max_tokens=max_tokens)
    report = train(model, pairs, options, _say)
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save(aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    target = report_file or out / "training.json"
    target.write_text(json.dumps(asdict(report) | {"model": model_path}, indent=2) + "\n")


def _say(done: int, total: int, loss: float, accuracy: float) -> None:
    line = {
        "event": "progress",
        "step": done,
        "steps": total,
        "loss": round(loss, 4),
        "accuracy": round(accuracy, 4),
    }
    print(json.dumps(line), flush=True)
