"""What every online algorithm is: from a batch of completions to targets, and from current log-probs to a loss.

    Rollouts ──targets()──▶ Targets          once a batch, before the first update
    Part + Current ──loss()──▶ Loss          for each micro-batch; sums of all parts give the minibatch's loss

Matrices are [rows, time] float32, one row a completion, padded on the right; `mask` is 1 where a token counts. Every
loss is a weighted sum over tokens whose weights know the whole minibatch: any micro-batches give the same step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

import torch

from services.common.spec.algorithms import OnlineSpec

Matrices = TypeVar("Matrices", "Rollouts", "Targets")
SpecType = TypeVar("SpecType", bound=OnlineSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What a batch of completions brings; [rows, time] but for scores and groups, [rows].

    old: the learner's log-probs before the update (proximal). importance: factor of each token's policy loss for what
    another policy or engine has sampled, 1 where nothing is corrected. Values are 0 where the algorithm has no critic.
    groups: int64, rows of one prompt share a number.
    """

    old_logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    old_values: torch.Tensor
    mask: torch.Tensor
    importance: torch.Tensor
    scores: torch.Tensor
    groups: torch.Tensor
    raw_logprobs: torch.Tensor | None = None
    """NLPO: the learner's log-probs before the action mask, where `old_logprobs` are those after it."""
    value_mask: torch.Tensor | None = None
    """Where values count, if not just where tokens do: one position past the end too, where a preset scores there."""

    @property
    def unmasked(self) -> torch.Tensor:
        """The learner's log-probs before the update, and before any action mask: what a KL is of."""
        return self.old_logprobs if self.raw_logprobs is None else self.raw_logprobs

    @property
    def valued(self) -> torch.Tensor:
        """1 where a value counts, [rows, time]."""
        return self.mask if self.value_mask is None else self.value_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the losses aim at, [rows, time], all without gradient. kl: what was taken from each reward, over beta."""

    advantages: torch.Tensor
    returns: torch.Tensor
    rewards: torch.Tensor
    kl: torch.Tensor
    kl_coefficient: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Current:
    """The policy's and the critic's view of the same tokens now, [rows, time], with gradients."""

    logprobs: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a minibatch, and how much the whole minibatch has: tokens that count, rows, values that count."""

    rollouts: Rollouts
    targets: Targets
    tokens: float
    rows: int
    values: float | None = None
    """None: as many as tokens."""

    @property
    def by_token(self) -> torch.Tensor:
        """Weights that make a sum over all parts the mean over the minibatch's tokens."""
        return self.rollouts.mask / max(1.0, self.tokens)

    @property
    def by_value(self) -> torch.Tensor:
        """The same for values, which may count at other positions."""
        return self.rollouts.valued / max(1.0, self.tokens if self.values is None else self.values)

    @property
    def by_row(self) -> torch.Tensor:
        """Weights that make it the mean over completions of the mean over each one's tokens."""
        mask = self.rollouts.mask
        return mask / mask.sum(-1, keepdim=True).clamp(min=1) / self.rows


@dataclass(frozen=True, slots=True)
class Loss:
    """total: a scalar with gradient. metrics: scalars; parts are added up, `…_min` and `…_max` are compared."""

    total: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Algorithm(ABC, Generic[SpecType]):
    """One algorithm with its settings. Pure: no state, no random numbers, no device of its own."""

    critic: ClassVar[bool] = False
    """Whether it needs values."""

    def __init__(self, spec: SpecType, *, max_completion_length: int) -> None:
        self.spec = spec
        self.max_completion_length = max_completion_length

    @abstractmethod
    def targets(self, rollouts: Rollouts, kl_coefficient: float) -> Targets:
        """Rewards, advantages, returns of a batch (or of a minibatch, where `per_minibatch`)."""

    @abstractmethod
    def loss(self, current: Current, part: Part) -> Loss:
        """The part's share of the minibatch's loss."""

    @property
    def per_minibatch(self) -> bool:
        """Whether targets are made for each minibatch by itself."""
        return False


def taken(matrices: Matrices, rows: list[int], *, device: torch.device | str | None = None) -> Matrices:
    """Some rows, in that order; on another device where one is named."""
    return _changed(matrices, lambda value: value[rows].to(device))


def cut(matrices: Matrices, width: int) -> Matrices:
    """The first columns of every matrix."""
    return _changed(matrices, lambda value: value[:, :width] if value.ndim == 2 else value)


def _changed(matrices: Matrices, change: Callable[[torch.Tensor], torch.Tensor]) -> Matrices:
    values: dict[str, Any] = {entry.name: getattr(matrices, entry.name) for entry in fields(matrices)}
    tensors = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
    return type(matrices)(**(values | tensors))


def merged(totals: dict[str, float], metrics: dict[str, torch.Tensor]) -> None:
    """Take a part's metrics into the minibatch's."""
    for name, value in metrics.items():
        number = float(value.detach())
        if name not in totals:
            totals[name] = number
        elif name.endswith("_min"):
            totals[name] = min(totals[name], number)
        elif name.endswith("_max"):
            totals[name] = max(totals[name], number)
        else:
            totals[name] += number
