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
from torch.nn.utils.rnn import pad_sequence

from services.common.spec.run import RunSpec
from services.learner.rows import before, sequence_ids
from services.learner.sample import Sample
from services.learner.trained import Trained
from services.models.logprobs import token_logprobs
from services.models.packing import micro_batches
from services.models.trunk import Split


@dataclass(frozen=True, slots=True)
class Kept:
    """An upper half and the head as they were; with its own embeddings where those are trained."""

    upper: Any
    head: torch.Tensor
    from_ids: bool

    def states(self, ids: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        """Last hidden states, [rows, time, width]. lower: those after the frozen layers, of the same rows."""
        given = {"input_ids": ids} if self.from_ids else {"inputs_embeds": lower}
        states: torch.Tensor = self.upper(**given, use_cache=False).last_hidden_state
        return states


def kept(model: Any, split: Split) -> Kept:
    """The trained half as it is now, for good; what is frozen anyway is shared."""
    head = model.get_output_embeddings().weight
    memo = {id(one): one for one in split.upper_half.parameters() if not one.requires_grad}
    upper = copy.deepcopy(split.upper_half, memo).requires_grad_(False)
    if not split.trains_embeddings:
        return Kept(upper, head, from_ids=False)
    tied = head is split.upper_half.get_input_embeddings().weight
    own = upper.get_input_embeddings().weight if tied else head.detach().clone()
    return Kept(upper, own, from_ids=True)


class ReferenceBranch:
    """Reference log-probs from the trunk's states, or from the ids where the embeddings are trained."""

    def __init__(self, trained: Trained, spec: RunSpec) -> None:
        self._spec, self._adapter = spec, trained.adapter
        self._kept = (
            kept(trained.model, trained.split)
            if trained.adapter is None
            else Kept(trained.split.upper_half, trained.model.get_output_embeddings().weight, from_ids=False)
        )

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

    def _logprobs(self, part: Sequence[Sample], trunk: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        head = self._kept.head
        rows = [torch.tensor(sequence_ids(sample), dtype=torch.long) for sample in part]
        ids = pad_sequence(rows, batch_first=True).to(head.device)
        lower = pad_sequence(list(trunk), batch_first=True) if trunk else torch.empty(0)
        hidden = self._kept.states(ids, lower)
        counts = [len(sample.completion_ids) for sample in part]
        drawn_with = torch.tensor([one.temperature or self._spec.sampling.temperature for one in part])
        goal = torch.cat([torch.tensor(one.completion_ids, dtype=torch.long) for one in part])
        per_token = drawn_with.repeat_interleave(torch.tensor(counts)).to(hidden.device)
        return token_logprobs(before(hidden, part, counts), head, goal.to(hidden.device), per_token).split(
            counts
        )
