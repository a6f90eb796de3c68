"""DPO on comparisons: the policy against itself at the start, whose trained layers are kept as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from services.common.spec.library import DpoSpec
from services.common.spec.run import RunSpec
from services.learner.algorithms.base import Loss
from services.learner.algorithms.dpo import Pair, dpo_loss
from services.learner.offline.rows import Compared
from services.learner.offline.trainer import OfflineTrainer
from services.learner.reference_branch import kept
from services.models.loading import LoadedModel


class DpoTrainer(OfflineTrainer):
    """See the module. Made before a checkpoint is taken up: the reference is the starting model after a resume too."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec) -> None:
        super().__init__(loaded, spec)
        # Under LoRA the reference is the model itself, adapter off.
        self._reference = None if self.adapter else kept(self.model, self._split)

    def _losses(self, rows: Sequence[Compared]) -> Iterator[Loss]:
        settings = self.spec.algorithm
        assert isinstance(settings, DpoSpec)  # noqa: S101 - as the run's kind says
        answers = [answer for row in rows for answer in (row.chosen, row.rejected)]
        for micro in self._micro_batches(answers, together=2):
            part = [answers[2 * at + side] for side in (0, 1) for at in micro]
            sums = [one.sum() for one in self._logprobs(self._hidden(part), part)]
            with torch.no_grad(), self.adapter.off() if self.adapter else contextlib.nullcontext():
                first = self._hidden(part, self._reference)
                before = [one.sum() for one in self._logprobs(first, part, self._reference)]
            policy, reference, half = torch.stack(sums), torch.stack(before), len(micro)
            yield dpo_loss(
                Pair(policy[:half], reference[:half]),
                Pair(policy[half:], reference[half:]),
                settings,
                comparisons=len(rows),
            )
