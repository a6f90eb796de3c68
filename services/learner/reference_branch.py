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
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.spec.run import RunSpec
from services.learner.rows import before
from services.learner.sample import Sample
from services.learner.trained import Trained
from services.models.logprobs import token_logprobs
from services.models.packing import micro_batches
from services.models.trunk import Split


def frozen_copy(split: Split) -> Any:
    """The upper half as it is now, for good; what is frozen anyway is shared."""
    memo = {id(one): one for one in split.upper_half.parameters() if not one.requires_grad}
    return copy.deepcopy(split.upper_half, memo).requires_grad_(False)


class ReferenceBranch:
    """Reference log-probs from the trunk's states."""

    def __init__(self, trained: Trained, spec: RunSpec) -> None:
        self._spec, self._model, self._adapter = spec, trained.model, trained.adapter
        self._upper = trained.split.upper_half if trained.adapter else frozen_copy(trained.split)

    def told(self, samples: Sequence[Sample], trunk: Sequence[torch.Tensor]) -> list[Sample]:
        """The samples with reference log-probs. trunk: states after the frozen layers, one [length, width] each."""
        found = list(samples)
        lengths = [len(states) for states in trunk]
        with torch.no_grad(), self._adapter.off() if self._adapter else contextlib.nullcontext():
            for micro in micro_batches(lengths, self._spec.optimiser.micro_batch_tokens):
                part = [samples[at] for at in micro]
                for at, logprobs in zip(
                    micro, self._logprobs(part, [trunk[at] for at in micro]), strict=True
                ):
                    found[at] = replace(samples[at], reference_logprobs=logprobs.cpu().numpy())
        return found

    def _logprobs(self, part: Sequence[Sample], trunk: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        hidden = self._upper(
            inputs_embeds=pad_sequence(list(trunk), batch_first=True), use_cache=False
        ).last_hidden_state
        counts = [len(sample.completion_ids) for sample in part]
        drawn_with = torch.tensor([one.temperature or self._spec.sampling.temperature for one in part])
        goal = torch.cat([torch.tensor(one.completion_ids, dtype=torch.long) for one in part])
        head = self._model.get_output_embeddings().weight
        per_token = drawn_with.repeat_interleave(torch.tensor(counts)).to(hidden.device)
        return token_logprobs(before(hidden, part, counts), head, goal.to(hidden.device), per_token).split(
            counts
        )
