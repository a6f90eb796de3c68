"""Settings of the algorithms, one model for each `kind`; more of them in library.py. What they do: learner/algorithms.

Names are TRL's where it has the setting; sources stand in the algorithms' own modules.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from services.common.spec.base import Spec, unsaid
from services.common.spec.presets import PRESETS, PresetName


class KlSpec(Spec):
    """KL penalty to the reference."""

    kind: Literal["fixed", "adaptive"] = "fixed"
    coefficient: float = Field(0.05, ge=0, description="beta (at the start, when adaptive).")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Of the penalty, per token.")
    placement: Literal["reward", "loss"] = Field(
        "reward", description="Taken from each token's reward, or added to the loss with its own gradient."
    )
    target: float = Field(
        6.0, gt=0, description="Adaptive: target of the measured KL, nats. arXiv 1909.08593."
    )
    horizon: float = Field(10_000, gt=0, description="Adaptive: episodes. arXiv 1909.08593.")
    measured: Literal["k1", "k3"] = Field("k1", description="Adaptive: estimator of the KL held against it.")
    per_token: bool = Field(
        False, description="Adaptive: that KL is a mean over tokens, not a sum over the sequence."
    )
    gain: float | None = Field(
        None, gt=0, description="Adaptive: weight of one correction; left out: episodes / horizon."
    )
    lowest: float = Field(
        0.0, ge=0, description="Adaptive: beta never falls below this, however far the KL is from its target."
    )


class ImportanceSpec(Spec):
    """Correction for rollouts that another policy (or engine) has sampled: learner's over engine's probability."""

    mode: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        "none",
        description="Truncated: bounded to the clips. Masked: 0 beyond them (IcePop by token). Left out: none; of GRPO "
        "sequence_mask.",
        json_schema_extra=unsaid,
    )
    clip_min: float | None = Field(None, ge=0)
    clip_max: float | None = Field(None, gt=0, description="Left out: 2 by token, 5 by sequence.")

    @model_validator(mode="after")
    def _in_order(self) -> ImportanceSpec:
        low, high = self.bounds
        if self.clip_min is not None and low >= high:
            raise ValueError(f"expected clip_min below clip_max, which is {high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio."""
        cap = 2.0 if self.mode.startswith("token") else 5.0
        return self.clip_min or 0.0, self.clip_max if self.clip_max is not None else cap


class OnlineSpec(Spec):
    """What every algorithm that learns from fresh completions takes."""

    epochs: int = Field(1, ge=1, description="Passes over a rollout batch.")
    minibatches: int = Field(
        1, ge=1, description="Optimiser steps per pass; left out: 1.", json_schema_extra=unsaid
    )
    missing_end_penalty: float = Field(
        0.0,
        ge=0,
        description="Subtracted from the score without an end token; left out: 0.",
        json_schema_extra=unsaid,
    )
    missing_end_replaces: bool = Field(
        False,
        description="Minus the penalty is the score then, whatever it was; left out: false.",
        json_schema_extra=unsaid,
    )
    normalise_scores: bool = Field(False, description="Running mean and deviation, kept in the checkpoint.")
    clip_scores: tuple[float, float] | None = Field(
        None,
        description="Bounds of a score, after normalisation: no gain from what a reward model overrates.",
    )
    importance_sampling: ImportanceSpec = ImportanceSpec()
    entropy_coefficient: float = Field(
        0.0, ge=0, description="Exploration: weight of the mean entropy of a token, taken from the loss."
    )

    @field_validator("clip_scores")
    @classmethod
    def _clip_in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("expected [low, high] with low below high")
        return value

    @property
    def penalty(self) -> KlSpec:
        """The KL to the reference: where, how much, how it adapts."""
        raise NotImplementedError


class CriticSpec(OnlineSpec):
    """What every algorithm with values takes."""

    value_model: Literal["shared", "policy", "reward_model"] = Field(
        "shared",
        description="A head of zeros on the policy's own trunk; or a model of its own, which begins as the policy "
        "with such a head, or as the reward model with its head.",
    )
    value_model_path: str = Field(
        "", max_length=1024, description="Folder of that reward model; left out: the run's reward_model."
    )


class PpoSpec(CriticSpec):
    """Proximal policy optimisation, arXiv 1707.06347, on language models, arXiv 1909.08593."""

    kind: Literal["ppo"] = "ppo"
    preset: PresetName | None = Field(
        None, description="Numerics of a known system, for all fields that are not given."
    )
    epochs: int = Field(4, ge=1, description="Passes over a rollout batch.")
    clip_ratio: float = Field(0.2, gt=0)
    clip_value: float = Field(0.2, gt=0)
    value_loss: Literal["clipped", "squared"] = Field(
        "clipped", description="Half the larger square around the clip, or the plain square."
    )
    value_coefficient: float = Field(0.1, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    whitening: Literal["unbiased", "biased", "deviation"] = Field(
        "unbiased", description="Variance; deviation: divided by the unbiased one plus 1e-8."
    )
    whiten_scope: Literal["batch", "minibatch"] = "batch"
    score_position: Literal["last_token", "past_end"] = Field(
        "last_token",
        description="Of the reward: on the last token; or one past it, with a value there, if it fits (SFD, TRL).",
    )
    kl: KlSpec = KlSpec()
    ptx_coefficient: float = Field(
        0.0, ge=0, description="PPO-ptx: weight of the language-model loss on data.texts; InstructGPT: 27.8."
    )
    ptx_rows: int = Field(8, ge=1, description="Texts beside each update.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """A field that is given wins whole; a name that is unknown is told by the field itself."""
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(named if isinstance(named := given.get("preset"), str) else "", {})
        return {key: value for key, value in preset.items() if to_camel(key) not in given} | given

    @property
    def penalty(self) -> KlSpec:
        """See OnlineSpec."""
        return self.kl


class A2cSpec(CriticSpec):
    """Advantage actor-critic, arXiv 1602.01783, as in RL4LMs, arXiv 2210.01241."""

    kind: Literal["a2c"] = "a2c"
    value_coefficient: float = Field(0.5, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(1.0, ge=0, le=1)
    whiten_advantages: bool = False
    kl: KlSpec = KlSpec()

    @model_validator(mode="after")
    def _one_step(self) -> A2cSpec:
        if self.epochs * self.minibatches > 1:
            raise ValueError("a2c takes one step over a batch: epochs and minibatches stay 1")
        return self

    @property
    def penalty(self) -> KlSpec:
        """See OnlineSpec."""
        return self.kl


class ReinforcePlusPlusSpec(OnlineSpec):
    """REINFORCE++, arXiv 2501.03262: PPO's clip without a critic, advantages normalised over the batch."""

    kind: Literal["reinforce++"] = "reinforce++"
    clip_ratio: float = Field(0.2, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    baseline: bool = Field(
        False, description="Subtract the prompt's mean score first (REINFORCE++-baseline); needs n of 2."
    )
    kl: KlSpec = KlSpec(coefficient=0.01)

    @property
    def penalty(self) -> KlSpec:
        """See OnlineSpec."""
        return self.kl


class GroupSpec(OnlineSpec):
    """Several completions of a prompt, each held against the others."""

    num_generations: int = Field(8, ge=2, description="Completions of a prompt: n of a group.")


class ClippedGroupSpec(GroupSpec):
    """A ratio against the policy before the update, clipped. Names and defaults as in TRL 1.x."""

    beta: float = Field(0.0, ge=0, description="KL coefficient.")
    epsilon: float = Field(0.2, gt=0, description="Ratio clip below 1.")
    epsilon_high: float | None = Field(None, gt=0, description="Above 1; left out: epsilon. DAPO: 0.28.")

    @property
    def high(self) -> float:
        """The upper clip."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


class GrpoSpec(ClippedGroupSpec):
    """Group relative policy optimisation, arXiv 2402.03300, and its kin."""

    kind: Literal["grpo"] = "grpo"
    loss_type: Literal["grpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance_sampling_level: Literal["token", "sequence"] = Field("token", description="sequence: GSPO.")
    delta: float | None = Field(None, gt=1, description="Bound of the ratio where the advantage is negative.")
    use_bias_correction_kl: bool = Field(True, description="The KL term is multiplied by the ratio.")
    sapo_temperature_pos: float = Field(1.0, gt=0)
    sapo_temperature_neg: float = Field(1.05, gt=0)
    importance_sampling: ImportanceSpec = ImportanceSpec(mode="sequence_mask", clip_max=3.0)

    @field_validator("importance_sampling", mode="before")
    @classmethod
    def _corrects(cls, given: Any) -> Any:
        """A table with clips alone corrects as this kind does without it."""
        if not isinstance(given, dict) or "mode" in given:
            return given
        own = {"mode": "sequence_mask"} | (
            {} if {"clip_max", "clipMax"} & given.keys() else {"clip_max": 3.0}
        )
        return own | given

    @model_validator(mode="after")
    def _fits(self) -> GrpoSpec:
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("cispo needs epsilon_high, the bound of the ratio itself (ScaleRL: 5.0)")
        return self

    @property
    def penalty(self) -> KlSpec:
        """k3 in the loss."""
        return KlSpec(coefficient=self.beta, estimator="k3", placement="loss")


class RlooSpec(ClippedGroupSpec):
    """REINFORCE leave-one-out, arXiv 2402.14740."""

    kind: Literal["rloo"] = "rloo"
    num_generations: int = Field(2, ge=2, description="Completions of a prompt: n of a group.")
    beta: float = Field(0.05, ge=0, description="KL coefficient.")
    normalize_advantages: bool = False

    @property
    def penalty(self) -> KlSpec:
        """k1, summed over the sequence, in the reward."""
        return KlSpec(coefficient=self.beta)


class RftSpec(GroupSpec):
    """Rejection fine-tuning: cloning of the best of n completions, arXiv 2110.14168, 2308.01825."""

    kind: Literal["rft"] = "rft"
    keep: int = Field(1, ge=1, description="Best completions of a prompt that are kept.")
    at_least: float | None = Field(None, description="Lowest score of what is kept; left out: any.")

    @property
    def penalty(self) -> KlSpec:
        """None: what is cloned are the policy's own completions."""
        return KlSpec(coefficient=0.0)


class OtherSpec(OnlineSpec):
    """An algorithm of one's own: a file in learner/algorithms and a line in its registry."""

    kind: Literal["other"] = "other"
    name: str = Field(min_length=1, max_length=64, description="In the registry.")
    options: dict[str, float] = Field(default_factory=dict, description="Its settings.")
    kl: KlSpec = KlSpec()

    @property
    def penalty(self) -> KlSpec:
        """See OnlineSpec."""
        return self.kl
