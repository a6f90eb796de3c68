"""What a step tells of its batch, before the update, by TRL's names."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from services.learner.algorithms.base import Rollouts, Targets
from services.learner.algorithms.importance import importance_metrics
from services.learner.algorithms.kl import k1
from services.learner.algorithms.masked import masked_mean, masked_variance
from services.learner.sample import Sample


def step_metrics(
    samples: Sequence[Sample],
    rollouts: Rollouts,
    targets: Targets,
    entropy: torch.Tensor,
    raw_scores: torch.Tensor,
    *,
    critic: bool,
    corrected: bool,
) -> dict[str, float]:
    """entropy: [rows, time], nats. raw_scores: [rows], as they came.

    critic: there are values to tell of; corrected: there are importance factors.
    """
    mask = rollouts.mask
    kl = (k1(rollouts.unmasked, rollouts.reference_logprobs) * mask).sum(-1)
    non_score = -targets.kl_coefficient * targets.kl.sum(-1)
    metrics = {
        "objective/kl": float(kl.mean()),
        "objective/kl_coef": targets.kl_coefficient,
        "objective/entropy": float((-rollouts.old_logprobs * mask).sum(-1).mean()),
        "objective/non_score_reward": float(non_score.mean()),
        "objective/scores": float(raw_scores.mean()),
        "objective/scores_std": float(raw_scores.std(unbiased=False)),
        "objective/rlhf_reward": float((rollouts.scores + non_score).mean()),
        "policy/entropy_avg": float(masked_mean(entropy, mask)),
        "val/num_eos_tokens": float(sum(sample.ended for sample in samples)),
        **_lengths(samples, mask),
        **_drawn_with(samples),
        "sampling/logprob_difference": _logprob_difference(samples, rollouts),
    }
    if critic:
        metrics["val/var_explained"] = _explained(rollouts, targets)
    if corrected:
        metrics |= importance_metrics(rollouts.importance, mask)
    return metrics | targets.metrics


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over a step's updates; of their mean ratios, where there are several, the unbiased variance too (TRL)."""
    names = dict.fromkeys(name for update in updates for name in update)
    found = {name: sum(update.get(name, 0.0) for update in updates) / len(updates) for name in names}
    ratios = [update["val/ratio"] for update in updates if "val/ratio" in update]
    if len(ratios) > 1:
        found["val/ratio_var"] = statistics.variance(ratios)
    return found


def _lengths(samples: Sequence[Sample], mask: torch.Tensor) -> dict[str, float]:
    lengths = mask.sum(-1)
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(not sample.ended for sample in samples) / len(samples),
    }


def _drawn_with(samples: Sequence[Sample]) -> dict[str, float]:
    """Means of what the completions were drawn with, where they say so: what annealing does, beside the entropy."""
    told = {
        "sampling/temperature": [one.temperature for one in samples if one.temperature is not None],
        "sampling/top_p": [one.top_p for one in samples if one.top_p is not None],
    }
    return {name: sum(values) / len(values) for name, values in told.items() if values}


def _explained(rollouts: Rollouts, targets: Targets) -> float:
    """1 - variance of what the values miss / variance of the returns."""
    residual = masked_variance(targets.returns - rollouts.old_values, rollouts.valued, unbiased=False)
    spread = masked_variance(targets.returns, rollouts.valued, unbiased=False)
    return float(1 - residual / spread.clamp(min=1e-8))


def _logprob_difference(samples: Sequence[Sample], rollouts: Rollouts) -> float:
    """Mean absolute difference between the engine's and the learner's log-probs, nats per token that counts."""
    total, tokens = 0.0, 0.0
    for row, sample in enumerate(samples):
        old = rollouts.old_logprobs[row, : len(sample.behaviour_logprobs)].numpy()
        total += float((np.abs(sample.behaviour_logprobs - old) * sample.loss_mask).sum())
        tokens += float(sample.loss_mask.sum())
    return total / max(1.0, tokens)
