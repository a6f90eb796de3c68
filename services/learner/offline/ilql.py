"""ILQL on answers with rewards: the model with two Q heads, their targets and a V head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.spec.library import IlqlSpec
from services.common.spec.run import RunSpec
from services.learner.algorithms.base import Loss
from services.learner.algorithms.ilql import IlqlHeads, Transitions, ilql_loss, standardised
from services.learner.offline.rows import Answer
from services.learner.offline.trainer import OfflineTrainer
from services.learner.rows import before
from services.models.loading import LoadedModel
from services.models.manifest import in_component
from services.models.value_heads import HEADS_COMPONENT, HEADS_FILE, decoding_heads


class IlqlTrainer(OfflineTrainer):
    """See the module. `rows`: the whole file, whose rewards are standardised together."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec, rows: Sequence[Answer]) -> None:
        torch.manual_seed(spec.seed)  # of the heads' first weights
        super().__init__(loaded, spec)
        self._standardised = _standardised(rows)

    def _heads(self) -> IlqlHeads:
        width, vocabulary = self.model.config.hidden_size, self.model.get_output_embeddings().weight.shape[0]
        return IlqlHeads(width, vocabulary).to(self.model.device)

    def _losses(self, rows: Sequence[Answer]) -> Iterator[Loss]:
        settings = self.spec.algorithm
        assert isinstance(settings, IlqlSpec)  # noqa: S101 - as the run's kind says
        steps = float(sum(len(row.completion_ids) for row in rows))
        for micro in self._micro_batches(rows):
            part = [rows[at] for at in micro]
            counts = [len(row.completion_ids) + 1 for row in part]
            states = pad_sequence(
                list(before(self._hidden(part), part, counts).split(counts)), batch_first=True
            ).float()
            logits = states[:, :-1] @ self.model.get_output_embeddings().weight.float().T
            yield ilql_loss(
                self.heads(states, logits), self._steps(part, states.device), settings, steps=steps
            )

    def _steps(self, part: Sequence[Answer], device: torch.device) -> Transitions:
        """The answers' tokens; the standardised reward stands on the last one."""
        actions = [torch.tensor(row.completion_ids, dtype=torch.long) for row in part]
        mask = pad_sequence([torch.ones(len(one)) for one in actions], batch_first=True)
        continues = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        rewards = torch.tensor([self._standardised[row.reward] for row in part])
        return Transitions(
            pad_sequence(actions, batch_first=True).to(device),
            (rewards[:, None] * mask * (1 - continues)).to(device),
            mask.to(device),
            continues.to(device),
        )

    def step(self, rows: Sequence[Answer]) -> dict[str, float]:
        """See OfflineTrainer; the targets follow every few updates."""
        metrics = super().step(rows)
        settings = self.spec.algorithm
        assert isinstance(settings, IlqlSpec)  # noqa: S101 - as the run's kind says
        if self.step_number % settings.sync_every == 0:
            self.heads.sync(settings.alpha)
        return metrics

    def serving_weights(self) -> dict[str, torch.Tensor]:
        """The model's, and the heads that an engine decodes with, float32."""
        heads = decoding_heads(self.heads.state_dict())
        return super().serving_weights() | in_component(HEADS_COMPONENT, heads)

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """The heads, for decoding."""
        return {HEADS_FILE: self.heads.state_dict()}


def _standardised(rows: Sequence[Answer]) -> dict[float, float]:
    """Each reward of the file, as it is learnt from; 0 where all are the same."""
    rewards = torch.tensor([row.reward for row in rows], dtype=torch.float64)
    if len(rows) < 2 or not bool((rewards != rewards[0]).any()):
        return dict.fromkeys((row.reward for row in rows), 0.0)
    return dict(zip(rewards.tolist(), standardised(rewards).tolist(), strict=True))
