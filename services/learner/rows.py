"""Completions of different lengths as rows of tensors, and back. Knows no model and no algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from services.learner.sample import Ids


class Completed(Protocol):
    """A prompt and its completion."""

    @property
    def prompt_ids(self) -> Ids:
        """Of at least one token."""
        ...

    @property
    def completion_ids(self) -> Ids:
        """Of at least one token."""
        ...


def before(hidden: torch.Tensor, samples: Sequence[Completed], counts: Sequence[int]) -> torch.Tensor:
    """States before each of the first `counts` positions of the completions, one row after the other, [tokens, width].

    hidden: [rows, time, width]. One more than a completion has tokens: the state after its last one.
    """
    width = hidden.shape[1]
    places = [
        at * width + torch.arange(len(sample.prompt_ids) - 1, len(sample.prompt_ids) - 1 + count)
        for at, (sample, count) in enumerate(zip(samples, counts, strict=True))
    ]
    return hidden.reshape(-1, hidden.shape[-1])[torch.cat(places).to(hidden.device)]


def pairs_of(samples: Sequence[Completed], which: Sequence[int] | None = None) -> list[tuple[Ids, Ids]]:
    """Prompt and completion ids of the named samples, or of all."""
    chosen = samples if which is None else [samples[at] for at in which]
    return [(sample.prompt_ids, sample.completion_ids) for sample in chosen]


def wide(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """[rows, width], padded with 0."""
    padded = pad_sequence(list(rows), batch_first=True)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]))


def padded(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """[rows, width] float32 on the CPU, without gradient."""
    return wide([row.detach().cpu().float() for row in rows], width)
