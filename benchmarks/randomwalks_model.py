"""The model of benchmarks.randomwalks and how it walks: GPT-2 of 6 layers and width 144 over 23 tokens.

Owns tokens, masks and sampling; knows no algorithm. A walk is a row [1 + 9]: the start, then up to 9 tokens, ended by
<eos> and padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from services.common.tasks.randomwalks import END_ID, MAX_LENGTH, PAD_ID, VOCABULARY, RandomWalks

STEPS = MAX_LENGTH - 1
"""Tokens after the start."""
WIDTH = 144
CLONE_RATE, CLONE_BATCH = 1e-3, 50
Decide = Callable[[torch.Tensor], torch.Tensor]


class Walker(torch.nn.Module):
    """GPT-2 from scratch with a tied head and a value head of zeros; no dropout, attention with second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_layer=6,
            n_embd=WIDTH,
            n_head=12,
            vocab_size=len(VOCABULARY),
            n_positions=STEPS + 2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
        )
        self.gpt: Any = GPT2LMHeadModel(config)
        self.value = torch.nn.Linear(WIDTH, 1)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states, [rows, time, width]."""
        hidden: torch.Tensor = self.gpt.transformer(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[…, vocabulary]; padding can never be drawn."""
        return without_padding(self.gpt.lm_head(states))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [rows, time, vocabulary] and values [rows, time] that predict what follows each token."""
        states = self.states(ids)
        return self.logits(states), self.value(states)[..., 0]

    def decide(self, prefixes: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, [rows, vocabulary]."""
        return self.logits(self.states(prefixes)[:, -1])


def without_padding(logits: torch.Tensor) -> torch.Tensor:
    """Logits of the padding token far below all others."""
    return logits.index_fill(-1, torch.tensor([PAD_ID]), -1e9)


@dataclass(frozen=True, slots=True)
class Walks:
    """ids: [rows, longest + 1]; mask: [rows, longest] float32, 1 where a token after the start was drawn."""

    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def actions(self) -> torch.Tensor:
        """The tokens after the start, [rows, 9]."""
        return self.ids[:, 1:]

    @property
    def before(self) -> torch.Tensor:
        """What stands before each of them ends at this column, [rows, 9]."""
        return self.ids[:, :-1]

    def scores(self, task: RandomWalks) -> torch.Tensor:
        """Optimality of each, [rows]."""
        return torch.tensor([task.optimality(row) for row in self.ids.tolist()])


def of_data(task: RandomWalks) -> Walks:
    """The task's walks with their ends, [1000, 11] ids: ten nodes and <eos> at most."""
    rows = [[*walk, END_ID] for walk in task.walks]
    longest = MAX_LENGTH + 1
    ids = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])
    return Walks(ids, (ids[:, 1:] != PAD_ID).float())


@torch.no_grad()
def walk(decide: Decide, starts: Sequence[int], generator: torch.Generator | None) -> Walks:
    """Walks from the starts: drawn, or the likeliest tokens where there is no generator.

    Rows with the same beginning are decided once: few are different where the policy knows its way.
    """
    ids = torch.full((len(starts), STEPS + 1), PAD_ID)
    ids[:, 0] = torch.tensor(starts)
    walking = torch.ones(len(starts), dtype=torch.bool)
    mask = torch.zeros(len(starts), STEPS)
    for at in range(1, STEPS + 1):
        prefixes, which = torch.unique(ids[walking, :at], dim=0, return_inverse=True)
        logits = decide(prefixes)[which]
        if generator is None:
            drawn = logits.argmax(-1)
        else:
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        ids[walking, at] = drawn
        mask[walking, at - 1] = 1.0
        walking = walking & (ids[:, at] != END_ID)
        if not bool(walking.any()):
            break
    longest = int(mask.sum(-1).max())
    return Walks(ids[:, : longest + 1], mask[:, :longest])


def optimality(decide: Decide, task: RandomWalks, *, each: int, seed: int) -> float:
    """Mean over the starts of `each` drawn walks; of the likeliest walk with each = 0."""
    generator = torch.Generator().manual_seed(seed) if each else None
    walks = walk(decide, [start for start in task.starts for _ in range(max(1, each))], generator)
    return float(walks.scores(task).mean())


def cloned(task: RandomWalks, seed: int, *, epochs: int) -> Walker:
    """A model trained on the walks by plain cloning: where the online algorithms begin."""
    torch.manual_seed(seed)
    model, data = Walker(), of_data(task)
    optimiser = torch.optim.AdamW(model.parameters(), lr=CLONE_RATE, weight_decay=0.0)
    rates = decaying(optimiser, epochs * -(-len(data.ids) // CLONE_BATCH))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.ids), generator=generator).split(CLONE_BATCH):
            logits, _ = model(data.before[rows])
            losses = cross_entropy(logits.transpose(1, 2), data.actions[rows], reduction="none")
            loss = (losses * data.mask[rows]).sum() / data.mask[rows].sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rates.step()
    return model


def decaying(optimiser: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate's cosine to 0: what is rare in the data comes out sharp."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
