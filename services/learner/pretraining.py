"""Text beside the rollouts, for PPO-ptx: read, drawn, learnt from. Knows no rollout and no optimiser.

Which texts stand beside an update depends on the run's seed, the step and the update alone, so a resume draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.errors import ConfigError, InvalidInput
from services.common.jsonl import json_rows
from services.common.spec.run import DataSpec
from services.learner.algorithms.base import Loss
from services.learner.algorithms.ptx import mixed
from services.learner.group import ALONE, Group, run_along
from services.learner.sample import Ids
from services.models.facts import ModelFacts
from services.models.logprobs import token_logprobs
from services.models.trunk import Halves


def load_texts(spec: DataSpec, tokenizer: Any) -> list[Ids]:
    """Token ids of every text of `data.texts`, cut to `data.text_tokens`; none where no file is named.

    Raises NotFound, or InvalidInput with file and line for a row without text, or one of fewer than two tokens.
    """
    if not spec.texts:
        return []
    found = []
    for place, row in json_rows(Path(spec.texts)):
        text = row.get("text")
        if not isinstance(text, str):
            raise InvalidInput(f"{place}: text: expected a string")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: spec.text_tokens]
        if len(ids) < 2:
            raise InvalidInput(f"{place}: text: expected two tokens at least, there is nothing to predict")
        found.append(np.array(ids, np.int32))
    if not found:
        raise InvalidInput(f"{spec.texts}: the file has no text")
    return found


def drawn(texts: Sequence[Ids], count: int, *, seed: int, step: int, update: int) -> list[Ids]:
    """The texts beside one update, none twice."""
    generator = np.random.default_rng((seed, 78, step, update))
    return [texts[at] for at in generator.permutation(len(texts))[:count]]


def check_texts(texts: Sequence[Ids], facts: ModelFacts) -> None:
    """Raises ConfigError where there are texts for a model that does not read from left to right, or not so far."""
    if texts and facts.architecture != "causal":
        raise ConfigError(
            "algorithm.ptx_coefficient: texts are learnt by causal models; an encoder-decoder has no prompt to them"
        )
    longest = max(map(len, texts), default=0)
    if facts.context_length and longest > facts.context_length:
        raise ConfigError(
            f"data.text_tokens: a text has {longest} tokens, the model's context {facts.context_length}"
        )


def text_losses(
    split: Halves,
    head: torch.Tensor,
    texts: Sequence[Ids],
    *,
    gamma: float,
    token_budget: int,
    group: Group = ALONE,
) -> Iterator[Loss]:
    """gamma times the mean of -log pi over the texts' tokens but each first one, in parts for a backward pass each."""
    tokens = float(sum(len(text) - 1 for text in texts))
    for micro in group.micro_batches([len(text) for text in texts], token_budget):
        if not micro:
            yield Loss(run_along(split), {})
            continue
        rows = [torch.tensor(texts[at], dtype=torch.long) for at in micro]
        ids = pad_sequence(rows, batch_first=True).to(head.device)
        mask = pad_sequence([torch.ones(len(row) - 1) for row in rows], batch_first=True).to(head.device)
        pairs = [(texts[at][:1], texts[at][1:]) for at in micro]
        states = split.upper_rows(split.lower_rows(pairs), pairs)[:, :-1]
        flat = token_logprobs(states.reshape(-1, states.shape[-1]), head, ids[:, 1:].reshape(-1), 1.0)
        nothing = Loss(torch.zeros((), device=head.device), {})
        yield mixed(nothing, flat.view_as(mask), mask, gamma=gamma, tokens=tokens)
