"""Supervised fine-tuning: learn to give answers that were given. Owns the training; reads and writes no file.

    loss = -mean over the answers' tokens of log p(token | prompt, answer so far)

Prompts are read, never learned. Rows of a batch stand side by side in one sequence without padding (models.forest), or
padded where a model does not allow it (none with an encoder does). The mean runs over the batch's tokens, whatever the
micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from services.common.errors import InvalidInput
from services.learner.jobs.course import checkpointing, rate_factor
from services.learner.jobs.demonstrations import Demonstration
from services.models.chat import rendered
from services.models.encoder_decoder import is_encoder_decoder
from services.models.forest import enable_forests, plant, token_states
from services.models.logprobs import backbone_of, completion_states, pack, token_logprobs
from services.models.master_weights import MasterWeights, ParameterGroup
from services.models.packing import micro_batches
from services.models.trunk import freeze_lowest
from services.models.unrolled import unroll

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SftTraining:
    """How to train."""

    learning_rate: float = 2e-5
    epochs: int = 1
    batch_rows: int = 16
    held_out_share: float = 0.05
    max_tokens: int = 1024
    frozen_layers: int = 0
    train_embeddings: bool = True
    """And the head that is tied to them. Without effect under LoRA."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    warmup_share: float = 0.1
    micro_batch_tokens: int = 4096
    gradient_checkpointing: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, the answer beginning at `start`."""

    ids: tuple[int, ...]
    start: int

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class SftReport:
    """What came out. Losses in nats per token of the held-out answers."""

    loss_before: float
    loss_after: float
    perplexity_after: float
    train_rows: int
    held_out_rows: int
    train_tokens: int
    cut_rows: int
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def encode(tokenizer: Any, one: Demonstration, max_tokens: int) -> tuple[Row, bool]:
    """The row of a demonstration, and whether something did not fit: the prompt's beginning goes first, then the
    answer's end. The end token is learned unless the answer was cut. InvalidInput, with the row's place, for what the
    chat template refuses."""
    if getattr(tokenizer, "chat_template", None):
        try:
            text = rendered(tokenizer, one.messages, generate=True)
        except InvalidInput as error:
            raise InvalidInput(f"{one.place}: prompt: {error}" if one.place else str(error)) from None
        prompt = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        prompt = list(tokenizer("\n".join(content for _, content in one.messages) + "\n")["input_ids"])
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    answer = [*tokenizer(one.answer, add_special_tokens=False)["input_ids"], *end][: max_tokens - 1]
    kept = prompt[-(max_tokens - len(answer)) :]
    cut = len(kept) < len(prompt) or (bool(end) and answer[-1:] != end)
    return Row((*kept, *answer), len(kept)), cut


class Trainee:
    """A language model and how its rows are passed through it."""

    def __init__(self, model: Any, *, packed: bool = True) -> None:
        self.model = model
        self.backbone = backbone_of(model)
        packed = packed and not is_encoder_decoder(model)
        # First: its trial is against the backbone's own attention.
        self.layers = unroll(self.backbone) if packed else None
        self.packed = packed and enable_forests(self.backbone)

    def logprobs(self, rows: Sequence[Row]) -> torch.Tensor:
        """Log-probs of all answers' tokens, row after row, [tokens] float32, differentiable."""
        head = self.model.get_output_embeddings().weight
        if not self.packed:
            pairs = [
                (np.array(row.ids[: row.start], np.int32), np.array(row.ids[row.start :], np.int32))
                for row in rows
            ]
            packed = pack(pairs, head.device)
            return token_logprobs(completion_states(self.backbone, packed), head, packed.targets, 1.0)
        forest = plant([[row.ids] for row in rows], alike=self.layers is not None)
        states = token_states(self.backbone, forest, self.layers)
        places = [
            tree[row.start - 1 : len(row.ids) - 1] for tree, row in zip(forest.place, rows, strict=True)
        ]
        targets = [token for row in rows for token in row.ids[row.start :]]
        chosen = states[torch.cat(places).to(head.device)]
        return token_logprobs(chosen, head, torch.tensor(targets, device=head.device), 1.0)

    def loss(self, rows: Sequence[Row], token_budget: int) -> float:
        """Mean over all answers' tokens, nats."""
        total = 0.0
        with torch.inference_mode():
            for micro in micro_batches([len(row.ids) for row in rows], token_budget):
                total -= float(self.logprobs([rows[index] for index in micro]).sum())
        return total / sum(row.targets for row in rows)


def split(
    rows: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Training and held-out rows, no group (prompt, tree) on both sides; at least one group is held out."""
    groups = sorted({row.group for row in rows})
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[index] for index in order[: max(1, round(share * len(groups)))]}
    return [row for row in rows if row.group not in held], [row for row in rows if row.group in held]


def train(
    trainee: Trainee,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    options: SftTraining,
    progress: Progress | None = None,
) -> SftReport:
    """Train in place and report. Raises InvalidInput when either side of the split would be empty."""
    fit, held = split(demonstrations, options.held_out_share, options.seed)
    if not fit or not held:
        raise InvalidInput(
            f"{len(demonstrations)} demonstrations are too few to train on and to hold some out"
        )
    encoded = [encode(tokenizer, one, options.max_tokens) for one in fit]
    rows = [row for row, _ in encoded]
    held_rows = [encode(tokenizer, one, options.max_tokens)[0] for one in held]
    optimiser = make_optimiser(trainee.model, options)
    before = trainee.loss(held_rows, options.micro_batch_tokens)
    began = time.perf_counter()
    order = _order(len(rows), options)
    history = []
    with checkpointing(trainee.model, options.gradient_checkpointing):
        for number, batch in enumerate(order):
            factor = rate_factor(number, len(order), options.warmup_share)
            loss = update(trainee, [rows[index] for index in batch], options, optimiser, factor)
            history.append({"step": number, "loss": loss})
            if progress:
                progress(number + 1, len(order), loss)
    seconds = time.perf_counter() - began
    after = trainee.loss(held_rows, options.micro_batch_tokens)
    return SftReport(
        loss_before=before,
        loss_after=after,
        perplexity_after=math.exp(min(after, 50.0)),
        train_rows=len(rows),
        held_out_rows=len(held_rows),
        train_tokens=sum(row.targets for row in rows),
        cut_rows=sum(cut for _, cut in encoded),
        steps=len(order),
        seconds=seconds,
        history=history,
    )


def update(
    trainee: Trainee, rows: Sequence[Row], options: SftTraining, optimiser: MasterWeights, factor: float
) -> float:
    """One optimiser step; the mean loss of the batch."""
    tokens = sum(row.targets for row in rows)
    total = 0.0
    for micro in micro_batches([len(row.ids) for row in rows], options.micro_batch_tokens):
        loss = -trainee.logprobs([rows[index] for index in micro]).sum() / tokens
        loss.backward()
        optimiser.accumulate()
        total += float(loss.detach())
    optimiser.step(factor)
    return total


def make_optimiser(model: Any, options: SftTraining) -> MasterWeights:
    """AdamW over what is trained. Under LoRA that is settled already: the adapters."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        for parameter in model.get_input_embeddings().parameters():
            parameter.requires_grad_(options.train_embeddings)
        for parameter in model.get_output_embeddings().parameters():
            parameter.requires_grad_(options.train_embeddings)
        freeze_lowest(model, options.frozen_layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MasterWeights(
        [ParameterGroup(trained, options.learning_rate)],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
    )


def _order(rows: int, options: SftTraining) -> list[list[int]]:
    """Batches of all epochs, each epoch in an order of its own by the seed."""
    batches = []
    for epoch in range(options.epochs):
        drawn = np.random.default_rng((options.seed, epoch)).permutation(rows).tolist()
        batches += [drawn[at : at + options.batch_rows] for at in range(0, rows, options.batch_rows)]
    return batches
