"""One step on a batch of completions: passes, losses, update, metrics. Knows no queue, no wire and no algorithm.

    samples ─▶ frozen lower layers, once ─▶ proximal pass ─▶ targets ─▶ epochs x minibatches of updates
                                             (log-probs, values, entropy)

Targets and losses are the algorithm's (algorithms/), everything around them is here.
With a single update the proximal pass is the update's own forward pass: the ratio is 1 by definition.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from services.common.spec.algorithms import PpoSpec
from services.common.spec.library import NlpoSpec, TrpoSpec
from services.common.spec.run import RunSpec
from services.learner.algorithms.base import Current, Loss, Part, Rollouts, Targets, cut, merged, taken
from services.learner.algorithms.importance import importance
from services.learner.algorithms.kl import KlController, measured_kl
from services.learner.algorithms.registry import algorithm_of
from services.learner.critics import critic_of
from services.learner.group import ALONE, Group, run_along
from services.learner.masked_policy import MaskedPolicy
from services.learner.pretraining import check_texts, drawn, text_losses
from services.learner.reference_branch import ReferenceBranch
from services.learner.rows import before, padded, pairs_of, wide
from services.learner.sample import Ids, Sample, group_numbers
from services.learner.schedule import optimiser_of, schedule
from services.learner.scores import ScoreNormaliser
from services.learner.step_metrics import step_metrics, update_metrics
from services.learner.trained import check_kind, prepared
from services.learner.trust_region import trust_step
from services.models.loading import LoadedModel
from services.models.logprobs import Temperature, token_logprobs, token_logprobs_and_entropy
from services.models.packing import micro_batches


@dataclass(slots=True)
class _Pass:
    """What a forward pass over some rows gives: one tensor [length] for each row, by its number in the batch.

    idle: 0 with a graph, of a round in which this process had no row.
    """

    logprobs: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    entropy: dict[int, torch.Tensor] = field(default_factory=dict)
    raw: dict[int, torch.Tensor] = field(default_factory=dict)
    """Log-probs before the action mask, where there is one; else the same."""
    idle: torch.Tensor | None = None

    @property
    def rows(self) -> list[int]:
        """In the batch's order."""
        return sorted(self.logprobs)


@dataclass(frozen=True, slots=True)
class _Known:
    """The same of the whole batch, without gradients, in its order."""

    logprobs: list[torch.Tensor]
    values: list[torch.Tensor]
    entropy: list[torch.Tensor]
    raw: list[torch.Tensor]


def holds_all(device: torch.device, parts: int) -> bool:
    """Whether the graphs of all parts may stand at once, which saves a pass: for a GPU's memory there are parts."""
    return parts == 1 or device.type == "cpu"


class Trainer:
    """Policy, critic, optimiser and controllers. One thread at a time; alone, or as one process of a group."""

    def __init__(
        self, loaded: LoadedModel, spec: RunSpec, texts: Sequence[Ids] = (), *, group: Group = ALONE
    ) -> None:
        self.spec = spec
        self.group = group
        self.settings = spec.online
        self.model = loaded.model
        check_texts(texts, loaded.facts)
        self._texts = texts
        self.step_number = 0
        self.episodes = 0
        self.algorithm = algorithm_of(self.settings, max_completion_length=spec.sampling.max_new_tokens)
        self.kl = KlController.start(self.settings.penalty)
        self.scores = ScoreNormaliser(enabled=self.settings.normalise_scores)
        if isinstance(self.settings, TrpoSpec):
            self.model.set_attn_implementation("eager")  # fused attention has no second derivative
        self._trained = prepared(loaded, spec, written_out=group.written_out)
        self._split, self.adapter = self._trained.split, self._trained.adapter
        self._branch = ReferenceBranch(self._trained, spec) if spec.rollout.reference == "branch" else None
        self.critic = critic_of(spec, loaded, wanted=self.algorithm.critic, written_out=group.written_out)
        self.masked = MaskedPolicy(self.model, self.settings) if isinstance(self.settings, NlpoSpec) else None
        self._past_end = getattr(self.settings, "score_position", "") == "past_end"
        group.shard(self.model, self._split, self.critic)
        self.optimiser = optimiser_of(
            self.model, self.critic.parameters() if self.critic else [], spec.optimiser, group.masters
        )

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from a batch once (epochs x minibatches updates) and return metrics by TRL's names."""
        started = time.perf_counter()
        if self.adapter is not None:
            self.adapter.keep()
        updates = self._minibatches(len(samples))
        every = list(range(len(samples)))
        parts = list(self._micro_batches(samples, every))
        single = self._single and holds_all(self.model.device, len(parts))
        trunk = self._trunk(samples, [every, *updates])
        if self._branch is not None:
            samples = self._branch.told(samples, trunk)
        proximal = [self._forward(samples, trunk, micro, gradient=single, entropy=True) for micro in parts]
        known = self._known(samples, proximal)
        rollouts, scores = self._rollouts(samples, known)
        targets = self.algorithm.targets(rollouts, self.kl.coefficient)
        moved, told = dict[str, float](), list[dict[str, float]]()
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
            place_of = {row: place for place, row in enumerate(rows)}
            passes = (
                self._forward(samples, trunk, micro, gradient=True, entropy=explores)
                for micro in self._micro_batches(samples, rows)
            )
            for current in proximal if single else passes:
                self._backward(current, [place_of[row] for row in current.rows], whole, aims, update)
            self._learn_texts(number, update)
            update = self.group.summed(update)
            update["grad_norm"] = self.optimiser.step(factor)
            told.append(update)
        metrics = step_metrics(
            samples,
            rollouts,
            targets,
            padded(known.entropy, rollouts.mask.shape[1]),
            scores,
            critic=self.critic is not None,
            corrected=self.settings.importance_sampling.mode != "none",
        )
        metrics |= moved | update_metrics(told)
        metrics["lr"] = self.spec.optimiser.learning_rate * factor
        penalty = measured_kl(
            self.settings.penalty, rollouts.unmasked, rollouts.reference_logprobs, rollouts.mask
        )
        if self.masked is not None:
            metrics |= self.masked.metrics(samples)
            self.masked.updated(self.model, len(updates))
        self.kl = self.kl.updated(penalty, len(samples))
        self.step_number += 1
        self.episodes += len(samples)
        metrics["episode"] = float(self.episodes)
        metrics["time/update"] = time.perf_counter() - started
        return metrics

    def serving_weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights in serving dtype; exactly the cast of the trained ones."""
        beside = self.masked.weights() if self.masked else {}
        return self._trained.serving() | beside

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """Nothing beside the model: a critic is for training alone."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs beside the serving weights."""
        return {
            "kind": self.spec.algorithm.kind,
            "step": self.step_number,
            "episodes": self.episodes,
            "kl_coefficient": self.kl.coefficient,
            "scores": self.scores.state(),
            "value_head": self.critic.head.state_dict() if self.critic else {},
            "mask": self.masked.state() if self.masked else {},
            "optimiser": self.optimiser.state_dict(),
            **self._trained.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; the optimiser's masters rewrite the trained weights.

        Raises Mismatch for a state of another algorithm, or of other trained weights.
        """
        check_kind(state, self.spec.algorithm.kind)
        self._trained.check(state)
        self.step_number = int(state["step"])
        self.episodes = int(state["episodes"])
        if self.settings.penalty.kind == "adaptive":  # a fixed one is what the run's file says
            self.kl = KlController(self.settings.penalty, float(state["kl_coefficient"]))
        self.scores = ScoreNormaliser.of(state["scores"], enabled=self.settings.normalise_scores)
        if self.critic:
            self.critic.head.load_state_dict(state["value_head"])
        if self.masked:
            self.masked.restore(state["mask"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _trunk(self, samples: Sequence[Sample], passes: Sequence[list[int]]) -> list[torch.Tensor]:
        """What the layers that are trained take, one [length, width] for each sample that a pass here will ask for.

        None where the embeddings learn.
        """
        if self._split.trains_embeddings:
            return []
        states: list[torch.Tensor] = [torch.empty(0)] * len(samples)
        seen = sorted(
            {row for rows in passes for micro in self._micro_batches(samples, rows) for row in micro}
        )
        lengths = [_length(samples[row]) for row in seen]
        for micro in micro_batches(lengths, self.spec.optimiser.micro_batch_tokens):
            rows = [seen[at] for at in micro]
            for row, found in zip(rows, self._split.lower_rows(pairs_of(samples, rows)), strict=True):
                states[row] = found
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
        """Log-probs, values and, where asked for, entropy (else 0) of a micro-batch's rows, in one pass."""
        with torch.set_grad_enabled(gradient):
            if not rows:
                return _Pass(idle=run_along(self._split, self.critic))
            result = _Pass()
            pieces = self._forward_micro(samples, trunk, rows, entropy)
            for row, logprobs, values, spread, raw in zip(rows, *pieces, strict=True):
                result.logprobs[row], result.values[row], result.entropy[row] = logprobs, values, spread
                result.raw[row] = raw
            return result

    def _known(self, samples: Sequence[Sample], passes: Sequence[_Pass]) -> _Known:
        """The passes over the batch, of all processes."""

        def whole(parts: Iterable[dict[int, torch.Tensor]], lengths: Sequence[int]) -> list[torch.Tensor]:
            return self.group.whole(dict(ChainMap(*parts)), lengths)

        lengths = [len(sample.completion_ids) for sample in samples]
        return _Known(
            whole((one.logprobs for one in passes), lengths),
            whole((one.values for one in passes), [self._value_count(sample) for sample in samples]),
            whole((one.entropy for one in passes), lengths),
            whole((one.raw for one in passes), lengths) if self.masked else [],
        )

    def _forward_micro(
        self, samples: Sequence[Sample], trunk: list[torch.Tensor], rows: list[int], entropy: bool
    ) -> tuple[Sequence[torch.Tensor], ...]:
        pairs = pairs_of(samples, rows)
        lower = [trunk[row] for row in rows] if trunk else self._split.lower_rows(pairs)
        hidden = self._split.upper_rows(lower, pairs)
        chosen = [samples[row] for row in rows]
        lengths = [len(sample.completion_ids) for sample in chosen]
        states = before(hidden, chosen, lengths)
        wanted = [torch.tensor(sample.completion_ids, dtype=torch.long) for sample in chosen]
        head, goal = self.model.get_output_embeddings().weight, torch.cat(wanted).to(hidden.device)
        temperature = self._temperature(chosen, lengths, states.device)
        raw = None
        if self.masked is not None:
            logprobs, raw, spread = self.masked.logprobs(states, head, goal, temperature, chosen)
        elif entropy:
            logprobs, spread = token_logprobs_and_entropy(states, head, goal, temperature)
        else:
            logprobs = token_logprobs(states, head, goal, temperature)
            spread = torch.zeros_like(logprobs)
        valued = [self._value_count(sample) for sample in chosen]
        if self.critic is None:
            values = torch.zeros_like(logprobs)
        else:
            values = self.critic.values(before(self.critic.states(hidden, pairs), chosen, valued))
        raws = (logprobs if raw is None else raw).split(lengths)
        return logprobs.split(lengths), values.split(valued), spread.split(lengths), raws

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

    def _rollouts(self, samples: Sequence[Sample], proximal: _Known) -> tuple[Rollouts, torch.Tensor]:
        """The batch as [rows, time] matrices on the CPU, and the scores as they came."""
        settings = self.settings
        raw = torch.tensor([sample.score for sample in samples], dtype=torch.float32)
        scores = self.scores.update_and_apply(raw)
        if settings.clip_scores is not None:
            scores = scores.clamp(*settings.clip_scores)
        if settings.missing_end_penalty or settings.missing_end_replaces:
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
            raw_logprobs=padded(proximal.raw, width) * mask if self.masked else None,
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
        totals = [] if current.idle is None else [current.idle]
        if places:
            loss = self._loss(current, places, whole, aims)
            totals.append(loss.total)
            merged(update, loss.metrics)
        torch.stack(totals).sum().backward()
        self.optimiser.accumulate()

    def _loss(self, current: _Pass, places: list[int], whole: Rollouts, aims: Targets) -> Loss:
        rows = current.rows
        width, device = max(len(current.values[row]) for row in rows), self.model.device
        part = Part(
            cut(taken(whole, places, device=device), width),
            cut(taken(aims, places, device=device), width),
            tokens=float(whole.mask.sum()),
            rows=len(whole.scores),
            values=float(whole.valued.sum()),
        )
        logprobs = wide([current.logprobs[row] for row in rows], width)
        values = wide([current.values[row] for row in rows], width)
        loss = self.algorithm.loss(Current(logprobs * part.rollouts.mask, values), part)
        if not self.settings.entropy_coefficient:
            return loss
        spread = (wide([current.entropy[row] for row in rows], width) * part.by_token).sum()
        explored = -self.settings.entropy_coefficient * spread
        return Loss(loss.total + explored, loss.metrics | {"loss/entropy_avg": explored})

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
            group=self.group,
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

    def _micro_batches(self, samples: Sequence[Sample], rows: list[int]) -> list[list[int]]:
        """Some rows of the batch, as they go through the model together here; see Group."""
        lengths = [_length(samples[row]) for row in rows]
        dealt = self.group.micro_batches(lengths, self.spec.optimiser.micro_batch_tokens)
        return [[rows[place] for place in micro] for micro in dealt]


def _length(sample: Sample) -> int:
    """Tokens of prompt and completion."""
    return len(sample.prompt_ids) + len(sample.completion_ids)
