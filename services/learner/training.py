"""One step on a batch of completions: passes, losses, update, metrics. Knows no queue, no wire and no algorithm.

    samples ─▶ frozen lower layers, once ─▶ proximal pass ─▶ targets ─▶ epochs x minibatches of updates
                                             (log-probs, values, entropy)

Targets and losses are the algorithm's (algorithms/), everything around them is here.
With a single update the proximal pass is the update's own forward pass: the ratio is 1 by definition.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.spec.algorithms import PpoSpec
from services.common.spec.library import TrpoSpec
from services.common.spec.run import RunSpec
from services.learner.algorithms.base import Current, Part, Rollouts, Targets, cut, merged, taken
from services.learner.algorithms.importance import importance
from services.learner.algorithms.kl import KlController, measured_kl
from services.learner.algorithms.registry import algorithm_of
from services.learner.critics import critic_of
from services.learner.pretraining import drawn, text_losses
from services.learner.reference_branch import ReferenceBranch
from services.learner.rows import before, padded, sequence_ids, wide
from services.learner.sample import Ids, Sample, group_numbers
from services.learner.schedule import optimiser_of, schedule
from services.learner.scores import ScoreNormaliser
from services.learner.step_metrics import step_metrics
from services.learner.trained import prepared
from services.learner.trust_region import trust_step
from services.models.loading import LoadedModel
from services.models.logprobs import Temperature, token_logprobs, token_logprobs_and_entropy
from services.models.packing import micro_batches


@dataclass(slots=True)
class _Pass:
    """What a forward pass over some rows gives, one tensor [length] for each row."""

    logprobs: list[torch.Tensor]
    values: list[torch.Tensor]
    entropy: list[torch.Tensor]


class Trainer:
    """Policy, critic, optimiser and controllers. One thread at a time."""

    def __init__(self, loaded: LoadedModel, spec: RunSpec, texts: Sequence[Ids] = ()) -> None:
        self.spec = spec
        self.settings = spec.online
        self.model = loaded.model
        self._texts = texts
        self.step_number = 0
        self.episodes = 0
        self.algorithm = algorithm_of(self.settings, max_completion_length=spec.sampling.max_new_tokens)
        self.kl = KlController.start(self.settings.penalty)
        self.scores = ScoreNormaliser(enabled=self.settings.normalise_scores)
        if isinstance(self.settings, TrpoSpec):
            self.model.set_attn_implementation("eager")  # fused attention has no second derivative
        self._trained = prepared(loaded, spec)
        self._split, self.adapter = self._trained.split, self._trained.adapter
        self._branch = ReferenceBranch(self._trained, spec) if spec.rollout.reference == "branch" else None
        self.critic = critic_of(spec, loaded)
        self._past_end = getattr(self.settings, "score_position", "") == "past_end"
        self.optimiser = optimiser_of(
            self.model, self.critic.parameters() if self.critic else [], spec.optimiser
        )

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from a batch once (epochs x minibatches updates) and return metrics by TRL's names."""
        started = time.perf_counter()
        if self.adapter is not None:
            self.adapter.keep()
        trunk = self._trunk(samples)
        if self._branch is not None:
            samples = self._branch.told(samples, trunk)
        updates = self._minibatches(len(samples))
        single = self._single
        every = list(range(len(samples)))
        proximal = self._forward(samples, trunk, every, gradient=single, entropy=True)
        rollouts, scores = self._rollouts(samples, proximal)
        targets = self.algorithm.targets(rollouts, self.kl.coefficient)
        totals, moved = dict[str, float](), dict[str, float]()
        if isinstance(self.settings, TrpoSpec):
            moved = trust_step(
                self.spec, self.model, self._split, self.optimiser, samples, trunk, rollouts, targets
            )
        factor = schedule(self.spec.optimiser, self.step_number, self.spec.steps)
        if self.adapter is not None:
            self.adapter.drop(self.spec.seed, self.step_number)
        for number, rows in enumerate(updates):
            update: dict[str, float] = {}
            whole, aims = self._minibatch(rollouts, targets, rows)
            explores = self.settings.entropy_coefficient > 0
            for places in [every] if single else self._micro_batches([samples[row] for row in rows]):
                micro = [rows[place] for place in places]
                current = (
                    proximal
                    if single
                    else self._forward(samples, trunk, micro, gradient=True, entropy=explores)
                )
                self._backward(current, places, whole, aims, update)
            self._learn_texts(number, update)
            update["grad_norm"] = self.optimiser.step(factor)
            for name, value in update.items():
                totals[name] = totals.get(name, 0.0) + value
        metrics = step_metrics(
            samples,
            rollouts,
            targets,
            padded(proximal.entropy, rollouts.mask.shape[1]),
            scores,
            critic=self.critic is not None,
            corrected=self.settings.importance_sampling.mode != "none",
        )
        metrics |= moved | {name: value / len(updates) for name, value in totals.items()}
        metrics["lr"] = self.spec.optimiser.learning_rate * factor
        penalty = measured_kl(
            self.settings.penalty, rollouts.old_logprobs, rollouts.reference_logprobs, rollouts.mask
        )
        self.kl = self.kl.updated(penalty, len(samples))
        self.step_number += 1
        self.episodes += len(samples)
        metrics["episode"] = float(self.episodes)
        metrics["time/update"] = time.perf_counter() - started
        return metrics

    def serving_weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights in serving dtype; exactly the cast of the trained ones."""
        return self._trained.serving()

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """Nothing beside the model: a critic is for training alone."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs beside the serving weights."""
        return {
            "step": self.step_number,
            "episodes": self.episodes,
            "kl_coefficient": self.kl.coefficient,
            "scores": self.scores.state(),
            "value_head": self.critic.head.state_dict() if self.critic else {},
            "optimiser": self.optimiser.state_dict(),
            **self._trained.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; the optimiser's masters rewrite the trained weights."""
        self._trained.check(state)
        self.step_number = int(state["step"])
        self.episodes = int(state["episodes"])
        self.kl = KlController(self.settings.penalty, float(state["kl_coefficient"]))
        self.scores = ScoreNormaliser.of(state["scores"], enabled=self.settings.normalise_scores)
        if self.critic:
            self.critic.head.load_state_dict(state["value_head"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _trunk(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """States after the frozen layers, one [length, width] for each sample; none where the embeddings learn."""
        if self._split.trains_embeddings:
            return []
        states: list[torch.Tensor] = [torch.empty(0)] * len(samples)
        for micro in self._micro_batches(samples):
            hidden = self._lower([samples[index] for index in micro])
            for at, index in enumerate(micro):
                states[index] = hidden[at, : _length(samples[index])]
        return states

    def _lower(self, samples: Sequence[Sample]) -> torch.Tensor:
        """States after the frozen layers, [rows, time, width]."""
        rows = [torch.tensor(sequence_ids(sample), dtype=torch.long) for sample in samples]
        return self._split.lower(pad_sequence(rows, batch_first=True).to(self.model.device))

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
            for micro in self._micro_batches([samples[row] for row in rows]):
                chosen = [rows[at] for at in micro]
                pieces = self._forward_micro(samples, trunk, chosen, entropy)
                for at, logprobs, values, spread in zip(micro, *pieces, strict=True):
                    result.logprobs[at], result.values[at], result.entropy[at] = logprobs, values, spread
        return result

    def _forward_micro(
        self, samples: Sequence[Sample], trunk: list[torch.Tensor], rows: list[int], entropy: bool
    ) -> tuple[Sequence[torch.Tensor], ...]:
        chosen = [samples[row] for row in rows]
        lower = pad_sequence([trunk[row] for row in rows], batch_first=True) if trunk else self._lower(chosen)
        hidden = self._split.upper(lower, [_length(sample) for sample in chosen])
        lengths = [len(sample.completion_ids) for sample in chosen]
        states = before(hidden, chosen, lengths)
        wanted = [torch.tensor(sample.completion_ids, dtype=torch.long) for sample in chosen]
        head, goal = self.model.get_output_embeddings().weight, torch.cat(wanted).to(hidden.device)
        temperature = self._temperature(chosen, lengths, states.device)
        if entropy:
            logprobs, spread = token_logprobs_and_entropy(states, head, goal, temperature)
        else:
            logprobs = token_logprobs(states, head, goal, temperature)
            spread = torch.zeros_like(logprobs)
        valued = [self._value_count(sample) for sample in chosen]
        if self.critic is None:
            values = torch.zeros_like(logprobs)
        else:
            ids = [torch.tensor(sequence_ids(sample), dtype=torch.long) for sample in chosen]
            values = self.critic.values(before(self.critic.states(hidden, ids), chosen, valued))
        return logprobs.split(lengths), values.split(valued), spread.split(lengths)

    def _temperature(
        self, samples: Sequence[Sample], lengths: Sequence[int], device: torch.device
    ) -> Temperature:
        """What logits are divided by: what each completion was drawn with, one number where that is the same."""
        drawn_with = [one.temperature or self.spec.sampling.temperature for one in samples]
        if len(set(drawn_with)) == 1:
            return drawn_with[0]
        return torch.tensor(drawn_with, device=device).repeat_interleave(torch.tensor(lengths, device=device))

    def _value_count(self, sample: Sample) -> int:
        """Values of a completion: one for each token, and one past the end where the score stands there and it fits."""
        count = len(sample.completion_ids)
        return count + (self._past_end and count < self.spec.sampling.max_new_tokens)

    def _rollouts(self, samples: Sequence[Sample], proximal: _Pass) -> tuple[Rollouts, torch.Tensor]:
        """The batch as [rows, time] matrices on the CPU, and the scores as they came."""
        settings = self.settings
        raw = torch.tensor([sample.score for sample in samples], dtype=torch.float32)
        scores = self.scores.update_and_apply(raw)
        if settings.clip_scores is not None:
            scores = scores.clamp(*settings.clip_scores)
        if settings.missing_end_penalty:
            unfinished = torch.tensor([not sample.ended for sample in samples]).float()
            kept = scores * (1 - unfinished) if settings.missing_end_replaces else scores
            scores = kept - settings.missing_end_penalty * unfinished
        width = max(map(self._value_count, samples))
        old = padded(proximal.logprobs, width)
        mask = padded([torch.tensor(sample.loss_mask) for sample in samples], width)
        behaviour = padded([torch.tensor(sample.behaviour_logprobs) for sample in samples], width)
        reference = padded([torch.tensor(sample.reference_logprobs) for sample in samples], width)
        rollouts = Rollouts(
            # What does not count must not become infinite either: 0 times infinity is no number.
            old_logprobs=old * mask,
            reference_logprobs=reference * mask,
            old_values=padded(proximal.values, width),
            mask=mask,
            value_mask=self._value_mask(samples, width) if self._past_end else None,
            importance=importance(settings.importance_sampling, old, behaviour, mask),
            scores=scores,
            groups=group_numbers(samples),
        )
        return rollouts, raw

    def _value_mask(self, samples: Sequence[Sample], width: int) -> torch.Tensor:
        """Where tokens count, and the position past the end where there is a value."""
        rows = [
            np.append(one.loss_mask, np.ones(self._value_count(one) - len(one.loss_mask), np.float32))
            for one in samples
        ]
        return padded([torch.tensor(row) for row in rows], width)

    def _minibatch(self, rollouts: Rollouts, targets: Targets, rows: list[int]) -> tuple[Rollouts, Targets]:
        """Some rows of the batch with what they aim at: cut from the batch's targets, or made for them alone."""
        whole = taken(rollouts, rows)
        if self.algorithm.per_minibatch:
            return whole, self.algorithm.targets(whole, targets.kl_coefficient)
        return whole, taken(targets, rows)

    def _backward(
        self, current: _Pass, places: list[int], whole: Rollouts, aims: Targets, update: dict[str, float]
    ) -> None:
        """Loss of some rows of a minibatch, and its gradients; their metrics are added to `update`."""
        width, device = max(len(piece) for piece in current.values), self.model.device
        part = Part(
            cut(taken(whole, places, device=device), width),
            cut(taken(aims, places, device=device), width),
            tokens=float(whole.mask.sum()),
            rows=len(whole.scores),
            values=float(whole.valued.sum()),
        )
        logprobs, values = wide(current.logprobs, width), wide(current.values, width)
        loss = self.algorithm.loss(Current(logprobs * part.rollouts.mask, values), part)
        total, metrics = loss.total, loss.metrics
        if self.settings.entropy_coefficient:
            spread = (wide(current.entropy, width) * part.by_token).sum()
            total = total - self.settings.entropy_coefficient * spread
            metrics = metrics | {"loss/entropy_avg": -self.settings.entropy_coefficient * spread}
        total.backward()
        self.optimiser.accumulate()
        merged(update, metrics)

    @property
    def _single(self) -> bool:
        """Whether a step is one update, its forward pass the proximal one. TRPO's critic has passes of its own, and
        a pass under dropout is not the policy's.

        One sample in several minibatches is one update too, with a proximal pass of its own.
        """
        settings = self.settings
        drops = self.adapter is not None and self.adapter.spec.dropout > 0
        return (
            settings.epochs * settings.minibatches == 1 and not isinstance(settings, TrpoSpec) and not drops
        )

    def _learn_texts(self, number: int, update: dict[str, float]) -> None:
        """PPO-ptx: the gradients of some texts, added to those of this update's rollouts."""
        settings = self.settings
        if not isinstance(settings, PpoSpec) or not settings.ptx_coefficient:
            return
        losses = text_losses(
            self._split,
            self.model.get_output_embeddings().weight,
            drawn(self._texts, settings.ptx_rows, seed=self.spec.seed, step=self.step_number, update=number),
            gamma=settings.ptx_coefficient,
            token_budget=self.spec.optimiser.micro_batch_tokens,
        )
        for loss in losses:
            loss.total.backward()
            self.optimiser.accumulate()
            merged(update, loss.metrics)

    def _minibatches(self, count: int) -> list[list[int]]:
        """Rows of each update: reshuffled every epoch, by a seed that the step number determines."""
        settings = self.settings
        epochs = settings.critic_passes if isinstance(settings, TrpoSpec) else settings.epochs
        if self._single:
            return [list(range(count))]
        generator = np.random.default_rng((self.spec.seed, self.step_number))
        return [
            part.tolist()
            for _ in range(epochs)
            for part in np.array_split(generator.permutation(count), settings.minibatches)
            if len(part)
        ]

    def _micro_batches(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Places of samples that go through the model together."""
        return micro_batches(list(map(_length, samples)), self.spec.optimiser.micro_batch_tokens)


def _length(sample: Sample) -> int:
    """Tokens of prompt and completion."""
    return len(sample.prompt_ids) + len(sample.completion_ids)
