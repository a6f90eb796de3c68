"""Batches for tests of algorithms: matrices written out, everything that a test does not name left at nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from services.common.spec.algorithms import OnlineSpec
from services.learner.algorithms.base import Algorithm, Current, Loss, Part, Rollouts, Targets, cut, taken
from services.learner.algorithms.registry import algorithm_of

Rows = list[list[float]]


def matrix(rows: Rows, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype)


def rollouts(
    mask: Rows,
    *,
    old: Rows | None = None,
    reference: Rows | None = None,
    values: Rows | None = None,
    importance: Rows | None = None,
    scores: list[float] | None = None,
    groups: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Rollouts:
    """Log-probs and values are 0 where they are not given, the importance 1, each row a group of its own."""
    there = matrix(mask, dtype)

    def given(rows: Rows | None) -> torch.Tensor:
        return torch.zeros_like(there) if rows is None else matrix(rows, dtype)

    return Rollouts(
        old_logprobs=given(old),
        reference_logprobs=given(reference),
        old_values=given(values),
        mask=there,
        importance=torch.ones_like(there) if importance is None else matrix(importance, dtype),
        scores=torch.tensor(scores or [0.0] * len(there), dtype=dtype),
        groups=torch.tensor(groups or list(range(len(there)))),
    )


def targets(like: Rollouts, advantages: Rows, returns: Rows | None = None, beta: float = 0.0) -> Targets:
    """Targets as given, for losses alone."""
    dtype = like.mask.dtype
    zeros = torch.zeros_like(like.mask)
    return Targets(
        advantages=matrix(advantages, dtype),
        returns=zeros if returns is None else matrix(returns, dtype),
        rewards=zeros,
        kl=zeros,
        kl_coefficient=beta,
    )


def whole(batch: Rollouts, aims: Targets) -> Part:
    """A minibatch in one part."""
    return Part(batch, aims, tokens=float(batch.mask.sum()), rows=len(batch.scores))


def loss_at(
    algorithm: Algorithm[Any], batch: Rollouts, aims: Targets, ratios: Rows, values: Rows | None = None
) -> Loss:
    """The loss where each token is so many times as likely as before."""
    logprobs = batch.old_logprobs + matrix(ratios, batch.mask.dtype).log()
    now = torch.zeros_like(logprobs) if values is None else matrix(values, batch.mask.dtype)
    return algorithm.loss(Current(logprobs, now), whole(batch, aims))


def made(spec: OnlineSpec, *, longest: int = 4) -> Algorithm[Any]:
    """The algorithm of these settings."""
    return algorithm_of(spec, max_completion_length=longest)


def random_batch(
    *, rows: int = 6, width: int = 5, group: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Rollouts, Current]:
    """Ragged rows with a hole in the first, groups of `group`, and current log-probs a little off the old ones."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(rows, width, generator=generator, dtype=dtype)

    lengths = torch.randint(2, width + 1, (rows, 1), generator=generator)
    mask = (torch.arange(width)[None] < lengths).to(dtype)
    mask[0, 0] = 0
    old = -1.5 + noise(0.3)
    batch = Rollouts(
        old_logprobs=old,
        reference_logprobs=old + noise(0.3),
        old_values=noise(0.5),
        mask=mask,
        importance=torch.rand(rows, width, generator=generator, dtype=dtype) + 0.5,
        scores=noise(1.0)[:, 0],
        groups=torch.arange(rows) // group,
    )
    return batch, Current(old + noise(0.3), batch.old_values + noise(0.3))


def parts_of(
    batch: Rollouts, aims: Targets, current: Current, split: list[list[int]]
) -> list[tuple[Current, Part]]:
    """The minibatch cut into micro-batches, each as wide as its longest row."""
    pieces = []
    for rows in split:
        width = int(batch.mask[rows].cumsum(-1).argmax(-1).max()) + 1
        part = Part(
            cut(taken(batch, rows), width),
            cut(taken(aims, rows), width),
            tokens=float(batch.mask.sum()),
            rows=len(batch.scores),
        )
        pieces.append((Current(current.logprobs[rows, :width], current.values[rows, :width]), part))
    return pieces


def with_scores(batch: Rollouts, scores: list[float]) -> Rollouts:
    return replace(batch, scores=torch.tensor(scores, dtype=batch.scores.dtype))
