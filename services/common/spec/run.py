"""A training run: model, data, sampling, algorithm, rollouts, checkpoints. Read by learner, CLI and operator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from services.common.spec.base import Spec
from services.common.spec.service import ModelSpec


class SamplingSpec(Spec):
    """How the policy draws completions."""

    temperature: float = Field(1.0, gt=0, description="Logits of policy and reference are divided by it.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus; 1 is off.")
    top_k: int = Field(0, ge=0, description="0 is off.")
    max_new_tokens: int = Field(32, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    stop: tuple[str, ...] = ()


class DataSpec(Spec):
    """Where prompts come from."""

    prompts: str = Field(description="JSONL with `prompt`: a string, or a list of {role, content}.")
    split: str = Field("train", description="Rows whose `split` is this, or that have none.")
    shuffle: bool = True


class KlSpec(Spec):
    """KL penalty to the reference."""

    kind: Literal["fixed", "adaptive"] = "fixed"
    coefficient: float = Field(0.05, ge=0, description="beta (at the start, when adaptive).")
    target: float = Field(
        6.0, gt=0, description="Adaptive: target of the sequence KL, nats. arXiv 1909.08593."
    )
    horizon: float = Field(10_000, gt=0, description="Adaptive: episodes. arXiv 1909.08593.")
    lowest: float = Field(
        0.0, ge=0, description="Adaptive: beta never falls below this, however far the KL is from its target."
    )


class PpoSpec(Spec):
    """Proximal policy optimisation, arXiv 1707.06347, on language models, arXiv 1909.08593."""

    kind: Literal["ppo"] = "ppo"
    epochs: int = Field(4, ge=1, description="Passes over a rollout batch.")
    minibatches: int = Field(1, ge=1, description="Optimiser steps per pass.")
    clip_ratio: float = Field(0.2, gt=0)
    clip_value: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.1, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    kl: KlSpec = KlSpec()
    missing_end_penalty: float = Field(
        0.0, ge=0, description="Subtracted from the score without an end token."
    )
    normalise_scores: bool = Field(False, description="Running mean and deviation, kept in the checkpoint.")
    clip_scores: tuple[float, float] | None = Field(
        None,
        description="Bounds of a score, after normalisation: no gain from what a reward model overrates.",
    )

    @field_validator("clip_scores")
    @classmethod
    def _clip_in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("expected [low, high] with low below high")
        return value


class OptimiserSpec(Spec):
    """AdamW on float32 master weights."""

    learning_rate: float = Field(1e-5, gt=0)
    value_learning_rate: float | None = Field(None, gt=0, description="Value head; absent: the same.")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    frozen_layers: int = Field(
        0, ge=0, description="Lower layers (and the embeddings) that stay as they are."
    )
    micro_batch_tokens: int = Field(4096, ge=16, description="Padded tokens in one forward pass.")


class RolloutSpec(Spec):
    """How groups are made and consumed."""

    batch_groups: int = Field(32, ge=1, description="Groups per step.")
    completions_per_prompt: int = Field(1, ge=1, description="n of a group.")
    slip: tuple[str, ...] = Field(
        ("policy", "reference", "reward"), min_length=1, description="Stages in order."
    )
    max_staleness: int = Field(0, ge=0, description="Steps a rollout may be behind.")
    readmission_limit: int = Field(3, ge=0, description="Re-admissions per prompt.")
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="Weight of each scoring stage; absent: 1."
    )


class CheckpointSpec(Spec):
    """When the run's state is written."""

    every_steps: int = Field(10, ge=1)
    keep: int = Field(3, ge=1)


class RunSpec(Spec):
    """One training run, whole."""

    name: str = Field("run", min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(1, ge=0, lt=2**31)
    steps: int = Field(32, ge=1)
    model: ModelSpec
    reward_model: str = Field("", description="Folder of the reward model, or rule:<name>.")
    data: DataSpec
    sampling: SamplingSpec = SamplingSpec()
    algorithm: PpoSpec = PpoSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    rollout: RolloutSpec = RolloutSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()

    @model_validator(mode="after")
    def _slip_scores(self) -> RunSpec:
        if not any(stage == "reward" or stage.startswith("reward/") for stage in self.rollout.slip):
            raise ValueError("rollout.slip needs at least one stage named reward or reward/<name>")
        return self
