"""What learning from a file shares: the model, its optimiser, log-probs of answers, the state for a checkpoint."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from services.common.spec.run import RunSpec
from services.learner.algorithms.base import merged
from services.learner.offline.rows import Answer
from services.learner.reference_branch import Kept
from services.learner.rows import before, pairs_of
from services.learner.schedule import optimiser_of, schedule
from services.learner.trained import check_kind, prepared
from services.models.loading import LoadedModel
from services.models.logprobs import token_logprobs
from services.models.packing import micro_batches


class OfflineTrainer(ABC):
    """One thread at a time. `extra`: modules trained beside the model."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec) -> None:
        self.spec, self.model = spec, loaded.model
        self.step_number = 0
        self._trained = prepared(loaded, spec)
        self._split, self.adapter = self._trained.split, self._trained.adapter
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
        if self.adapter is not None:
            self.adapter.drop(self.spec.seed, self.step_number)
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
        return self._trained.serving()

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """What is written beside the model, by the file's name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs."""
        return {
            "kind": self.spec.algorithm.kind,
            "step": self.step_number,
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            **self._trained.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken. Raises Mismatch as Trainer's."""
        check_kind(state, self.spec.algorithm.kind)
        self._trained.check(state)
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
        lower = self._split.lower_rows(pairs)
        return self._split.upper_rows(lower, pairs) if kept is None else kept.states(pairs, lower)

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
