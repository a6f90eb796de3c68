"""Online algorithms on random walks, in one process: our sampling, our targets, our losses, plain Adam.

All begin at the clone of the data (randomwalks_model.cloned) and take no KL penalty, as trlX's PPO there does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from benchmarks.randomwalks_model import STEPS, Decide, Walker, Walks, optimality, walk, without_padding
from services.common.spec.algorithms import (
    A2cSpec,
    GroupSpec,
    GrpoSpec,
    KlSpec,
    OnlineSpec,
    PpoSpec,
    RlooSpec,
)
from services.common.spec.library import NlpoSpec, TrpoSpec
from services.common.tasks.randomwalks import PAD_ID, VOCABULARY, RandomWalks
from services.learner.algorithms.base import Algorithm, Current, Part, Rollouts, Targets, taken
from services.learner.algorithms.nlpo import MaskModel, Nlpo, masked_logits, packed, unpacked
from services.learner.algorithms.registry import algorithm_of
from services.learner.algorithms.trpo import categorical_kl, surrogate, trpo_targets, trust_region_step

NONE = KlSpec(coefficient=0.0)
CURVATURE_ROWS = 50
"""Walks of a batch whose second derivative TRPO takes."""
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """How an algorithm is run: rollouts in all, in a batch, and the rate of Adam, which falls to a tenth."""

    spec: OnlineSpec
    rollouts: int
    batch: int
    rate: float


SETTINGS: dict[str, Setting] = {
    "ppo": Setting(
        PpoSpec(epochs=3, minibatches=2, value_coefficient=1.2, kl=NONE), rollouts=2800, batch=100, rate=5e-4
    ),
    "a2c": Setting(A2cSpec(whiten_advantages=True, kl=NONE), rollouts=6000, batch=60, rate=3e-4),
    "grpo": Setting(GrpoSpec(epochs=2), rollouts=6000, batch=120, rate=3e-4),
    "rloo": Setting(RlooSpec(num_generations=6, beta=0.0, epochs=2), rollouts=6000, batch=120, rate=3e-4),
    "trpo": Setting(
        TrpoSpec(gamma=1.0, kl=NONE, target_kl=0.03, cg_steps=10, critic_passes=4),
        rollouts=6000,
        batch=250,
        rate=1e-3,
    ),
    "nlpo": Setting(
        NlpoSpec(
            epochs=2, minibatches=2, value_coefficient=1.2, kl=NONE, top_p=0.95, min_tokens=2, refresh_every=4
        ),
        rollouts=6000,
        batch=150,
        rate=3e-4,
    ),
}


@dataclass(frozen=True, slots=True)
class Result:
    """sampled, greedy: optimality at the end. curve: (rollouts, sampled). masked: NLPO's share of actions."""

    sampled: float
    greedy: float
    curve: tuple[Point, ...]
    masked: float = 0.0


def train(name: str, clone: Walker, task: RandomWalks, seed: int, *, share: float = 1.0) -> Result:
    """Run one algorithm from the clone. `share` of its rollouts, for a quick run."""
    setting = SETTINGS[name]
    torch.manual_seed(seed)
    learner = LEARNERS[name](copy.deepcopy(clone), setting)
    generator = torch.Generator().manual_seed(seed)
    updates = max(1, round(share * setting.rollouts / setting.batch))
    curve = [(0, optimality(learner.decide, task, each=20, seed=seed))]
    for update in range(1, updates + 1):
        starts, groups = _starts(setting, task, generator)
        walks = walk(learner.decide, starts, generator)
        learner.learn(walks, walks.scores(task), groups, generator)
        if update % max(1, updates // 10) == 0:
            curve.append((update * setting.batch, optimality(learner.decide, task, each=20, seed=seed)))
    return Result(
        sampled=optimality(learner.decide, task, each=100, seed=seed),
        greedy=optimality(learner.decide, task, each=0, seed=seed),
        curve=tuple(curve),
        masked=learner.masked,
    )


def _starts(
    setting: Setting, task: RandomWalks, generator: torch.Generator
) -> tuple[list[int], torch.Tensor]:
    """Starts of a batch, each as often in a row as the algorithm's groups are large, and the groups' numbers."""
    each = setting.spec.num_generations if isinstance(setting.spec, GroupSpec) else 1
    count = setting.batch // each
    chosen = torch.randint(len(task.starts), (count,), generator=generator)
    groups = torch.arange(count).repeat_interleave(each)
    return [task.starts[at] for at in chosen.repeat_interleave(each).tolist()], groups


class GradientLearner:
    """An algorithm with a loss: epochs and minibatches of Adam."""

    masked = 0.0

    def __init__(self, model: Walker, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.algorithm: Algorithm[Any] = self._algorithm()
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=setting.rate, weight_decay=0.0)
        updates = setting.rollouts // setting.batch * setting.spec.epochs * setting.spec.minibatches
        self.rates = torch.optim.lr_scheduler.LinearLR(self.optimiser, 1.0, 0.1, total_iters=updates)
        self.updates = 0

    def _algorithm(self) -> Algorithm[Any]:
        return algorithm_of(self.setting.spec, max_completion_length=STEPS)

    @property
    def decide(self) -> Decide:
        """The policy that walks."""
        return self.model.decide

    def learn(
        self, walks: Walks, scores: torch.Tensor, groups: torch.Tensor, generator: torch.Generator
    ) -> None:
        """One batch: targets, then epochs x minibatches of updates."""
        batch = self._rollouts(walks, scores, groups)
        targets = self.algorithm.targets(batch, 0.0)
        for rows in minibatches(len(scores), self.setting.spec, generator):
            part_batch, aims = taken(batch, rows), taken(targets, rows)
            part = Part(part_batch, aims, tokens=float(part_batch.mask.sum()), rows=len(rows))
            current = self._current(walks.before[rows], walks.actions[rows], rows)
            self._step(self.algorithm.loss(current, part).total)

    def _step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.rates.step()
        self.updates += 1

    def _current(self, before: torch.Tensor, actions: torch.Tensor, rows: list[int]) -> Current:  # noqa: ARG002
        logits, values = self.model(before)
        return Current(chosen(logits, actions), values)

    def _rollouts(self, walks: Walks, scores: torch.Tensor, groups: torch.Tensor) -> Rollouts:
        with torch.no_grad():
            current = self._current(walks.before, walks.actions, list(range(len(scores))))
        return rollouts_of(walks, scores, groups, current)


class MaskedLearner(GradientLearner):
    """NLPO: the mask model's nucleus bounds what is drawn; its masks travel packed with the rollouts."""

    def __init__(self, model: Walker, setting: Setting) -> None:
        super().__init__(model, setting)
        self.mask = MaskModel(model, self.algorithm.spec)
        self._packed = torch.zeros(0, dtype=torch.uint8)
        self._shares: list[float] = []

    def _algorithm(self) -> Algorithm[Any]:
        assert isinstance(self.setting.spec, NlpoSpec)  # noqa: S101 - the table above says so
        return Nlpo(self.setting.spec, max_completion_length=STEPS)

    @property
    def masked(self) -> float:  # type: ignore[override]
        """Share of the vocabulary's actions that the masks took away, over all rollouts."""
        return sum(self._shares) / max(1, len(self._shares))

    @property
    def decide(self) -> Decide:
        """The masked policy."""
        return lambda prefixes: masked_logits(
            self.model.decide(prefixes), self.mask.allowed(self.mask.model.decide(prefixes))
        )

    def _step(self, loss: torch.Tensor) -> None:
        super()._step(loss)
        self.mask.updated(self.model, self.updates)

    def _current(self, before: torch.Tensor, actions: torch.Tensor, rows: list[int]) -> Current:
        logits, values = self.model(before)
        allowed = unpacked(self._packed[rows], len(VOCABULARY))
        # Where no token was drawn the padding stands, which no nucleus needs to hold.
        allowed = allowed | torch.nn.functional.one_hot(actions, len(VOCABULARY)).bool()
        return Current(chosen(masked_logits(logits, allowed), actions), values)

    def _rollouts(self, walks: Walks, scores: torch.Tensor, groups: torch.Tensor) -> Rollouts:
        with torch.no_grad():
            allowed = self.mask.allowed(self.mask.model(walks.before)[0])
            self._packed = packed(allowed)
            self._shares.append(float((~allowed).float().mean(-1)[walks.mask > 0].mean()))
            raw, values = self.model(walks.before)
            current = self._current(walks.before, walks.actions, list(range(len(scores))))
        return rollouts_of(
            walks, scores, groups, Current(current.logprobs, values), raw=chosen(raw, walks.actions)
        )


class TrustRegionLearner:
    """TRPO: the policy moves as one flat vector; a critic of its own is fitted after each step."""

    masked = 0.0

    def __init__(self, model: Walker, setting: Setting) -> None:
        assert isinstance(setting.spec, TrpoSpec)  # noqa: S101 - the table above says so
        self.model, self.critic, self.spec = model, copy.deepcopy(model), setting.spec
        self.optimiser = torch.optim.AdamW(self.critic.parameters(), lr=setting.rate, weight_decay=0.0)
        self._names = [name for name, _ in model.gpt.named_parameters()]
        self._shapes = [parameter.shape for parameter in model.gpt.parameters()]

    @property
    def decide(self) -> Decide:
        """The policy that walks."""
        return self.model.decide

    def learn(
        self, walks: Walks, scores: torch.Tensor, groups: torch.Tensor, generator: torch.Generator
    ) -> None:
        """One natural step of the policy, then the critic's passes."""
        old = self._logs(self._flat(), walks.before).detach()
        with torch.no_grad():
            current = Current(_at(old, walks.actions), self.critic(walks.before)[1])
        batch = rollouts_of(walks, scores, groups, current)
        targets = trpo_targets(batch, self.spec, 0.0)

        def raised(theta: torch.Tensor) -> torch.Tensor:
            return surrogate(_at(self._logs(theta, walks.before), walks.actions), batch, targets)

        def divergence(theta: torch.Tensor) -> torch.Tensor:
            return categorical_kl(old, self._logs(theta, walks.before), batch.mask)

        few = torch.randperm(len(scores), generator=generator)[:CURVATURE_ROWS]

        def curvature(theta: torch.Tensor) -> torch.Tensor:
            return categorical_kl(old[few], self._logs(theta, walks.before[few]), batch.mask[few])

        step = trust_region_step(self._flat(), raised, divergence, self.spec, curvature=curvature)
        torch.nn.utils.vector_to_parameters(step.theta, self.model.gpt.parameters())
        self._fit(walks, batch, targets, generator)

    def _fit(self, walks: Walks, batch: Rollouts, targets: Targets, generator: torch.Generator) -> None:
        for _ in range(self.spec.critic_passes):
            for part in torch.randperm(len(batch.scores), generator=generator).split(100):
                rows = part.tolist()
                error = (self.critic(walks.before[rows])[1] - targets.returns[rows]) ** 2
                self.optimiser.zero_grad()
                ((error * batch.mask[rows]).sum() / batch.mask[rows].sum()).backward()
                self.optimiser.step()

    def _flat(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.gpt.parameters()).detach()

    def _logs(self, theta: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Log-softmax of the policy that the vector describes, [rows, time, vocabulary]."""
        pieces = theta.split([shape.numel() for shape in self._shapes])
        named = {
            name: piece.view(shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }
        logits: torch.Tensor = functional_call(
            self.model.gpt, named, kwargs={"input_ids": before, "use_cache": False}
        ).logits
        return without_padding(logits).log_softmax(-1)


LEARNERS: dict[str, Callable[[Walker, Setting], Any]] = {
    "ppo": GradientLearner,
    "a2c": GradientLearner,
    "grpo": GradientLearner,
    "rloo": GradientLearner,
    "nlpo": MaskedLearner,
    "trpo": TrustRegionLearner,
}


def chosen(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Log-probs of the actions, [rows, time]; 0 where padding stands."""
    return _at(logits.log_softmax(-1), actions)


def _at(logs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return logs.gather(-1, actions[..., None])[..., 0].masked_fill(actions == PAD_ID, 0.0)


def minibatches(count: int, spec: OnlineSpec, generator: torch.Generator) -> Iterator[list[int]]:
    """Rows of each update."""
    for _ in range(spec.epochs):
        for rows in torch.randperm(count, generator=generator).chunk(spec.minibatches):
            yield rows.tolist()


def rollouts_of(
    walks: Walks,
    scores: torch.Tensor,
    groups: torch.Tensor,
    current: Current,
    raw: torch.Tensor | None = None,
) -> Rollouts:
    """The batch as the algorithms take it; without a KL penalty the reference is the policy itself."""
    return Rollouts(
        old_logprobs=current.logprobs * walks.mask,
        reference_logprobs=(current.logprobs if raw is None else raw) * walks.mask,
        old_values=current.values * walks.mask,
        mask=walks.mask,
        importance=torch.ones_like(walks.mask),
        scores=scores,
        groups=groups,
        raw_logprobs=None if raw is None else raw * walks.mask,
    )
