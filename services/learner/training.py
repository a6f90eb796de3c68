"""One PPO step on a batch of completions: passes, losses, update, metrics. Knows no queue and no wire.

    samples ─▶ frozen lower layers, once ─▶ proximal pass ─▶ targets ─▶ epochs x minibatches of updates
                                             (log-probs, values, entropy)

With a single update the proximal pass is the update's own forward pass: the ratio is 1 by definition.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.spec.run import OptimiserSpec, RunSpec
from services.learner.algorithms import ppo
from services.learner.algorithms.kl import KlController
from services.learner.algorithms.masked import masked_mean, masked_variance
from services.learner.scores import ScoreNormaliser
from services.models.loading import LoadedModel, serving_state
from services.models.logprobs import token_logprobs, token_logprobs_and_entropy
from services.models.master_weights import MasterWeights, ParameterGroup
from services.models.packing import micro_batches
from services.models.trunk import freeze

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion to learn from. Arrays of the completion's length; log-probs at the sampling temperature."""

    prompt_ids: Ids
    completion_ids: Ids
    behaviour_logprobs: Floats
    reference_logprobs: Floats
    loss_mask: Floats
    score: float
    ended: bool


@dataclass(slots=True)
class _Pass:
    """What a forward pass over some rows gives, one tensor [length] for each row."""

    logprobs: list[torch.Tensor]
    values: list[torch.Tensor]
    entropy: list[torch.Tensor]


class Trainer:
    """Policy, value head, optimiser and controllers. One thread at a time."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec) -> None:
        self.spec = spec
        self.model = loaded.model
        self.step_number = 0
        self.episodes = 0
        self.kl = KlController.start(spec.algorithm.kl)
        self.scores = ScoreNormaliser(enabled=spec.algorithm.normalise_scores)
        self._split = freeze(self.model, spec.optimiser.frozen_layers)
        self.value_head = torch.nn.Linear(self.model.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_head.to(self.model.device)
        self.optimiser = _optimiser(self.model, self.value_head, spec.optimiser)

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from a batch once (epochs x minibatches updates) and return metrics by TRL's names."""
        started = time.perf_counter()
        algorithm = self.spec.algorithm
        trunk = self._trunk(samples)
        single = algorithm.epochs * algorithm.minibatches == 1
        every = list(range(len(samples)))
        proximal = self._forward(samples, trunk, every, gradient=single, entropy=True)
        rollouts, scores = self._rollouts(samples, proximal)
        targets = ppo.targets(rollouts, algorithm, self.kl.coefficient)
        totals: dict[str, float] = {}
        updates = 0
        factor = schedule(self.spec.optimiser, self.step_number, self.spec.steps)
        for rows in self._minibatches(len(samples)):
            # Where no token counts the losses are 0, and so is the step.
            tokens = max(1.0, float(rollouts.mask[rows].sum()))
            for micro in self._micro_batches(samples, rows):
                current = proximal if single else self._forward(samples, trunk, micro, gradient=True)
                chosen = every if single else micro
                self._backward(current, chosen, rollouts, targets, tokens, totals)
                if single:
                    break
            totals["grad_norm"] = totals.get("grad_norm", 0.0) + self.optimiser.step(factor)
            updates += 1
        metrics = self._metrics(samples, rollouts, targets, proximal, scores)
        metrics |= {name: value / updates for name, value in totals.items()}
        metrics["lr"] = self.spec.optimiser.learning_rate * factor
        self.kl = self.kl.updated(metrics["objective/kl"], len(samples))
        self.step_number += 1
        self.episodes += len(samples)
        metrics["episode"] = float(self.episodes)
        metrics["time/update"] = time.perf_counter() - started
        return metrics

    def serving_weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights in serving dtype; exactly the cast of the trained ones."""
        return serving_state(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs beside the serving weights."""
        return {
            "step": self.step_number,
            "episodes": self.episodes,
            "kl_coefficient": self.kl.coefficient,
            "scores": self.scores.state(),
            "value_head": self.value_head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; the optimiser's masters rewrite the trained weights."""
        self.step_number = int(state["step"])
        self.episodes = int(state["episodes"])
        self.kl = KlController(self.spec.algorithm.kl, float(state["kl_coefficient"]))
        self.scores = ScoreNormaliser.of(state["scores"], enabled=self.spec.algorithm.normalise_scores)
        self.value_head.load_state_dict(state["value_head"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _trunk(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """States after the frozen layers, one [length, width] for each sample."""
        states: list[torch.Tensor] = [torch.empty(0)] * len(samples)
        for micro in self._micro_batches(samples, list(range(len(samples)))):
            rows = [_whole(samples[index]) for index in micro]
            ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
            hidden = self._split.lower(ids.to(self.model.device))
            for at, index in enumerate(micro):
                states[index] = hidden[at, : len(rows[at])]
        return states

    def _forward(
        self,
        samples: Sequence[Sample],
        trunk: list[torch.Tensor],
        rows: list[int],
        *,
        gradient: bool,
        entropy: bool = False,
    ) -> _Pass:
        """Log-probs, values and, where asked for, entropy (else 0) of the named rows, in their order."""
        result = _Pass(
            [torch.empty(0)] * len(rows), [torch.empty(0)] * len(rows), [torch.empty(0)] * len(rows)
        )
        with torch.set_grad_enabled(gradient):
            for micro in self._micro_batches([samples[row] for row in rows], list(range(len(rows)))):
                chosen = [rows[at] for at in micro]
                pieces = self._forward_micro(samples, trunk, chosen, entropy)
                for at, logprobs, values, spread in zip(micro, *pieces, strict=True):
                    result.logprobs[at], result.values[at], result.entropy[at] = logprobs, values, spread
        return result

    def _forward_micro(
        self, samples: Sequence[Sample], trunk: list[torch.Tensor], rows: list[int], entropy: bool
    ) -> tuple[Sequence[torch.Tensor], ...]:
        hidden = self._split.upper(pad_sequence([trunk[row] for row in rows], batch_first=True))
        width = hidden.shape[1]
        positions, wanted, lengths = [], [], []
        for at, row in enumerate(rows):
            sample = samples[row]
            start, count = len(sample.prompt_ids) - 1, len(sample.completion_ids)
            positions.append(at * width + torch.arange(start, start + count))
            wanted.append(torch.tensor(sample.completion_ids, dtype=torch.long))
            lengths.append(count)
        states = hidden.reshape(-1, hidden.shape[-1])[torch.cat(positions).to(hidden.device)]
        head, goal = self.model.get_output_embeddings().weight, torch.cat(wanted).to(hidden.device)
        temperature = self.spec.sampling.temperature
        if entropy:
            logprobs, spread = token_logprobs_and_entropy(states, head, goal, temperature)
        else:
            logprobs = token_logprobs(states, head, goal, temperature)
            spread = torch.zeros_like(logprobs)
        values = self.value_head(states.float())[:, 0]
        return tuple(piece.split(lengths) for piece in (logprobs, values, spread))

    def _rollouts(self, samples: Sequence[Sample], proximal: _Pass) -> tuple[ppo.Rollouts, torch.Tensor]:
        """The batch as [rows, time] matrices on the CPU, and the scores as they came."""
        raw = torch.tensor([sample.score for sample in samples])
        scores = self.scores.update_and_apply(raw)
        if self.spec.algorithm.clip_scores is not None:
            scores = scores.clamp(*self.spec.algorithm.clip_scores)
        penalty = self.spec.algorithm.missing_end_penalty
        if penalty:
            scores = scores - penalty * torch.tensor([not sample.ended for sample in samples]).float()

        def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
            return pad_sequence([row.detach().cpu().float() for row in rows], batch_first=True)

        rollouts = ppo.Rollouts(
            old_logprobs=padded(proximal.logprobs),
            reference_logprobs=padded([torch.tensor(sample.reference_logprobs) for sample in samples]),
            old_values=padded(proximal.values),
            mask=padded([torch.tensor(sample.loss_mask) for sample in samples]),
            scores=scores,
        )
        return rollouts, raw

    def _backward(
        self,
        current: _Pass,
        rows: list[int],
        rollouts: ppo.Rollouts,
        targets: ppo.Targets,
        tokens: float,
        totals: dict[str, float],
    ) -> None:
        """Losses of some rows, divided by the tokens of their whole minibatch, and their gradients."""
        device = self.model.device

        def flat(matrix: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [matrix[row, : len(piece)] for row, piece in zip(rows, current.logprobs, strict=True)]
            ).to(device)

        algorithm = self.spec.algorithm
        sums = ppo.losses(
            torch.cat(current.logprobs),
            torch.cat(current.values),
            flat(rollouts.old_logprobs),
            flat(rollouts.old_values),
            flat(targets.advantages),
            flat(targets.returns),
            flat(rollouts.mask),
            algorithm,
        )
        loss = (sums.policy + algorithm.value_coefficient * sums.value) / tokens
        loss.backward()
        self.optimiser.accumulate()
        for name, value in (
            ("loss/policy_avg", sums.policy),
            ("loss/value_avg", sums.value),
            ("policy/clipfrac_avg", sums.clipped),
            ("val/clipfrac_avg", sums.value_clipped),
            ("policy/approxkl_avg", sums.approx_kl),
            ("val/ratio", sums.ratio),
        ):
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / tokens

    def _minibatches(self, count: int) -> list[list[int]]:
        """Rows of each update: reshuffled every epoch, by a seed that the step number determines."""
        generator = np.random.default_rng((self.spec.seed, self.step_number))
        algorithm = self.spec.algorithm
        return [
            part.tolist()
            for _ in range(algorithm.epochs)
            for part in np.array_split(generator.permutation(count), algorithm.minibatches)
            if len(part)
        ]

    def _micro_batches(self, samples: Sequence[Sample], rows: list[int]) -> list[list[int]]:
        lengths = [len(samples[row].prompt_ids) + len(samples[row].completion_ids) for row in rows]
        budget = self.spec.optimiser.micro_batch_tokens
        return [[rows[at] for at in batch] for batch in micro_batches(lengths, budget)]

    def _metrics(
        self,
        samples: Sequence[Sample],
        rollouts: ppo.Rollouts,
        targets: ppo.Targets,
        proximal: _Pass,
        raw_scores: torch.Tensor,
    ) -> dict[str, float]:
        """What was true of the batch before the update, by TRL's names (NUMERICS)."""
        mask = rollouts.mask
        kl = targets.kl.sum(-1)
        non_score = -self.kl.coefficient * kl
        residual = masked_variance(targets.returns - rollouts.old_values, mask, unbiased=False)
        spread = masked_variance(targets.returns, mask, unbiased=False)
        lengths = mask.sum(-1)
        entropy = pad_sequence([piece.detach().cpu() for piece in proximal.entropy], batch_first=True)
        return {
            "objective/kl": float(kl.mean()),
            "objective/kl_coef": self.kl.coefficient,
            "objective/entropy": float((-rollouts.old_logprobs * mask).sum(-1).mean()),
            "objective/non_score_reward": float(non_score.mean()),
            "objective/scores": float(raw_scores.mean()),
            "objective/scores_std": float(raw_scores.std(unbiased=False)),
            "objective/rlhf_reward": float((rollouts.scores + non_score).mean()),
            "policy/entropy_avg": float(masked_mean(entropy, mask)),
            "val/var_explained": float(1 - residual / spread.clamp(min=1e-8)),
            "val/num_eos_tokens": float(sum(sample.ended for sample in samples)),
            "completions/mean_length": float(lengths.mean()),
            "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()),
            "completions/clipped_ratio": sum(not sample.ended for sample in samples) / len(samples),
            "sampling/logprob_difference": _logprob_difference(samples, rollouts),
        }


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


def _optimiser(model: Any, value_head: torch.nn.Module, spec: OptimiserSpec) -> MasterWeights:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = spec.value_learning_rate or spec.learning_rate
    return MasterWeights(
        [ParameterGroup(trained, spec.learning_rate), ParameterGroup(list(value_head.parameters()), rate)],
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
    )


def _whole(sample: Sample) -> Ids:
    return np.concatenate([sample.prompt_ids, sample.completion_ids])


def _logprob_difference(samples: Sequence[Sample], rollouts: ppo.Rollouts) -> float:
    """Mean absolute difference between the engine's and the learner's log-probs, nats per token."""
    differences = [
        np.abs(
            sample.behaviour_logprobs - rollouts.old_logprobs[row, : len(sample.behaviour_logprobs)].numpy()
        )
        for row, sample in enumerate(samples)
    ]
    return float(np.concatenate(differences).mean())
