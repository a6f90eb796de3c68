"""What learning from a file shares: the model, its optimiser, log-probs of answers, the state for a checkpoint."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.common.spec.run import RunSpec
from services.learner.algorithms.base import merged
from services.learner.offline.rows import Answer
from services.learner.rows import before, pairs_of
from services.learner.schedule import frozen, optimiser_of, schedule
from services.models.loading import LoadedModel, serving_state
from services.models.logprobs import row_states, token_logprobs
from services.models.packing import micro_batches


@dataclass(frozen=True, slots=True)
class Kept:
    """A trained half and the head as they were."""

    upper: Any
    head: torch.Tensor


class OfflineTrainer(ABC):
    """One thread at a time. `extra`: modules trained beside the model."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec) -> None:
        self.spec, self.model = spec, loaded.model
        self.step_number = 0
        self._split = frozen(self.model, spec.optimiser)
        self.heads: Any = self._heads()
        self.optimiser = optimiser_of(
            self.model, [one for one in self.heads.parameters() if one.requires_grad], spec.optimiser
        )

    def _heads(self) -> torch.nn.Module:
        """Modules beside the model; none by default."""
        return torch.nn.Identity()

    @abstractmethod
    def _losses(self, rows: Sequence[Any]) -> Iterator[Any]:
        """The batch's loss in parts, one backward pass each."""

    def step(self, rows: Sequence[Any]) -> dict[str, float]:
        """Learn from a batch once, one update; metrics by the field's names."""
        started = time.perf_counter()
        factor = schedule(self.spec.optimiser, self.step_number, self.spec.steps)
        metrics: dict[str, float] = {}
        for loss in self._losses(rows):
            loss.total.backward()
            self.optimiser.accumulate()
            merged(metrics, {"loss": loss.total, **loss.metrics})
        metrics["grad_norm"] = self.optimiser.step(factor)
        metrics["lr"] = self.spec.optimiser.learning_rate * factor
        self.step_number += 1
        metrics["time/update"] = time.perf_counter() - started
        return metrics

    def serving_weights(self) -> dict[str, torch.Tensor]:
        """The model's weights in serving dtype."""
        return serving_state(self.model)

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """What is written beside the model, by the file's name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs."""
        return {
            "step": self.step_number,
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.step_number = int(state["step"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _micro_batches(self, answers: Sequence[Answer], *, together: int = 1) -> list[list[int]]:
        """Places of answers, or of so many that stay together, that go through the model at once."""
        lengths = [
            max(len(one.prompt_ids) + len(one.completion_ids) for one in answers[at : at + together])
            for at in range(0, len(answers), together)
        ]
        return micro_batches(lengths, max(16, self.spec.optimiser.micro_batch_tokens // together))

    def _hidden(self, answers: Sequence[Answer], kept: Kept | None = None) -> torch.Tensor:
        """Last hidden states, [rows, time, width]; of what was kept where that is given."""
        pairs = pairs_of(answers)
        if kept is not None and self._split.trains_embeddings:
            # They were kept too; the lower half is nothing but the embeddings then.
            return row_states(kept.upper, pairs)
        return self._split.upper_rows(self._split.lower_rows(pairs), pairs, kept.upper if kept else None)

    def _logprobs(
        self, hidden: torch.Tensor, answers: Sequence[Answer], kept: Kept | None = None
    ) -> list[torch.Tensor]:
        """Of each answer's tokens, [length] each."""
        counts = [len(one.completion_ids) for one in answers]
        goal = torch.cat([torch.tensor(one.completion_ids, dtype=torch.long) for one in answers])
        head = kept.head if kept else self.model.get_output_embeddings().weight
        return list(
            token_logprobs(before(hidden, answers, counts), head, goal.to(hidden.device), 1.0).split(counts)
        )

    def _keep(self) -> Kept:
        """The trained half as it is now, for good; what is frozen anyway is shared."""
        head = self.model.get_output_embeddings().weight
        memo = {id(one): one for one in self._split.upper_half.parameters() if not one.requires_grad}
        upper = copy.deepcopy(self._split.upper_half, memo).requires_grad_(False)
        if not self._split.trains_embeddings:
            return Kept(upper, head)
        tied = head is self._split.upper_half.get_input_embeddings().weight
        return Kept(upper, upper.get_input_embeddings().weight if tied else head.detach().clone())
