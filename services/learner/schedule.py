"""A run's optimiser, what it trains, and how its rate goes over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from services.common.spec.run import OptimiserSpec
from services.models.master_weights import MasterWeights, ParameterGroup
from services.models.trunk import Halves, halves_of


def schedule(spec: OptimiserSpec, step: int, steps: int) -> float:
    """Factor of the learning rate at a step: warm-up from 1/warmup, then constant, linear or cosine to 0."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    if spec.schedule == "linear":
        return max(0.0, 1 - progress)
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def frozen(model: Any, spec: OptimiserSpec, *, written_out: bool = True) -> Halves:
    """The model split above what a run leaves as it is. Raises InvalidInput where that cannot be.

    written_out: see services/models/trunk.py freeze.
    """
    return halves_of(model, spec.frozen_layers, embeddings=spec.train_embeddings, written_out=written_out)


def optimiser_of(
    model: Any,
    beside: Sequence[torch.nn.Parameter],
    spec: OptimiserSpec,
    masters: Callable[..., MasterWeights] = MasterWeights,
) -> MasterWeights:
    """For what is trained of the model, and parameters beside it (values, Qs) at a rate of their own."""
    groups = [ParameterGroup([one for one in model.parameters() if one.requires_grad], spec.learning_rate)]
    if beside:
        groups.append(ParameterGroup(beside, spec.value_learning_rate or spec.learning_rate))
    return masters(
        groups,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        kind=spec.kind,
        tensorflow_eps=spec.eps_form == "tensorflow",
        average=spec.weight_average,
    )
