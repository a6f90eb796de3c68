"""The reference in the learner: the starting model's upper half (a hydra's second head) on the shared, frozen trunk.

    ids ─▶ frozen lower layers, once ─┬─▶ trained layers            ─▶ policy's log-probs
                                      └─▶ the same as they began     ─▶ reference log-probs
                                          (a frozen copy; under LoRA the layers themselves, adapter off)

A run then needs no reference stage. Made before a checkpoint is taken up: the start is the reference after a resume
too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from services.common.spec.run import RunSpec
from services.learner.rows import before, pairs_of
from services.learner.sample import Sample
from services.learner.trained import Trained
from services.models.encoder_decoder import Row
from services.models.logprobs import row_states, token_logprobs
from services.models.packing import micro_batches
from services.models.trunk import Halves, Split
from services.models.unrolled import Unrolled, unroll


@dataclass(frozen=True, slots=True)
class Kept:
    """An upper half and the head as they were; with its own embeddings where those are trained.

    layers: the half's in a faster way, where there is one.
    """

    upper: Any
    head: torch.Tensor
    split: Halves
    layers: Unrolled | None

    def states(self, rows: Sequence[Row], lower: Sequence[torch.Tensor]) -> torch.Tensor:
        """Last hidden states, [rows, time, width]. lower: what the frozen layers gave of the same rows."""
        if self.split.trains_embeddings:
            return row_states(self.upper, rows, layers=self.layers)
        return self.split.upper_rows(lower, rows, self.layers or self.upper)


def kept(model: Any, split: Halves) -> Kept:
    """The trained half as it is now, for good; what is frozen anyway is shared."""
    head = model.get_output_embeddings().weight
    memo = {id(one): one for one in split.upper_half.parameters() if not one.requires_grad}
    upper = copy.deepcopy(split.upper_half, memo).requires_grad_(False)
    layers = None if _layers(split) is None else unroll(upper)
    if not split.trains_embeddings:
        return Kept(upper, head, split, layers)
    tied = head is split.upper_half.get_input_embeddings().weight
    own = upper.get_input_embeddings().weight if tied else head.detach().clone()
    return Kept(upper, own, split, layers)


def _layers(split: Halves) -> Unrolled | None:
    return split.unrolled if isinstance(split, Split) else None


def _base(trained: Trained) -> Kept:
    """What an adapter stands on; it is to be off when this is asked."""
    split, head = trained.split, trained.model.get_output_embeddings().weight
    return Kept(split.upper_half, head, split, _layers(split))


class ReferenceBranch:
    """Reference log-probs from the trunk's states, or from the ids where the embeddings are trained."""

    def __init__(self, trained: Trained, spec: RunSpec) -> None:
        self._spec, self._adapter = spec, trained.adapter
        self._kept = kept(trained.model, trained.split) if trained.adapter is None else _base(trained)

    def told(self, samples: Sequence[Sample], trunk: Sequence[torch.Tensor]) -> list[Sample]:
        """The samples with reference log-probs.

        trunk: states after the frozen layers, one [length, width] each; none where the embeddings are trained.
        """
        found = list(samples)
        lengths = [len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples]
        with torch.no_grad(), self._adapter.off() if self._adapter else contextlib.nullcontext():
            for micro in micro_batches(lengths, self._spec.optimiser.micro_batch_tokens):
                part, states = [samples[at] for at in micro], [trunk[at] for at in micro] if trunk else []
                for at, logprobs in zip(micro, self._logprobs(part, states), strict=True):
                    found[at] = replace(samples[at], reference_logprobs=logprobs.cpu().numpy())
        return found

    def _logprobs(self, part: Sequence[Sample], lower: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        head = self._kept.head
        hidden = self._kept.states(pairs_of(part), lower)
        counts = [len(sample.completion_ids) for sample in part]
        drawn_with = torch.tensor([one.temperature or self._spec.sampling.temperature for one in part])
        goal = torch.cat([torch.tensor(one.completion_ids, dtype=torch.long) for one in part])
        per_token = drawn_with.repeat_interleave(torch.tensor(counts)).to(hidden.device)
        return token_logprobs(before(hidden, part, counts), head, goal.to(hidden.device), per_token).split(
            counts
        )
