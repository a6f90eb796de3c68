"""A training run: model, data, sampling, algorithm, rollouts, checkpoints. Read by learner, CLI and operator."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from services.common.spec.algorithms import AlgorithmSpec, GroupSpec, PpoSpec, check_kind
from services.common.spec.base import Spec
from services.common.spec.service import ModelSpec

SwapMode = Literal["wait", "keep", "abort_and_resume"]


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
    completions_per_prompt: int = Field(
        1, ge=1, description="n of a group; for grpo, rloo and rft algorithm.num_generations says it."
    )
    slip: tuple[str, ...] = Field(
        ("policy", "reference", "reward"), min_length=1, description="Stages in order."
    )
    max_staleness: int = Field(0, ge=0, description="Steps a rollout may be behind.")
    readmission_limit: int = Field(3, ge=0, description="Re-admissions per prompt.")
    swap: SwapMode = Field(
        "wait",
        description="New weights while a replica generates: wait for the batch to end; keep its sequences and go on "
        "under the new ones; abort_and_resume: hand them back, whoever takes them goes on.",
    )
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
    algorithm: AlgorithmSpec = PpoSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    rollout: RolloutSpec = RolloutSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return check_kind(given)

    @property
    def group_size(self) -> int:
        """Completions of a prompt."""
        algorithm = self.algorithm
        return (
            algorithm.num_generations
            if isinstance(algorithm, GroupSpec)
            else self.rollout.completions_per_prompt
        )

    @model_validator(mode="after")
    def _groups_fit(self) -> RunSpec:
        given = self.rollout.completions_per_prompt
        if given not in (1, self.group_size):
            raise ValueError(
                f"rollout.completions_per_prompt = {given}, but algorithm.num_generations = {self.group_size}: "
                "leave the first out"
            )
        if self.group_size < 2 and getattr(self.algorithm, "baseline", False):
            raise ValueError("algorithm.baseline needs rollout.completions_per_prompt of at least 2")
        return self

    @model_validator(mode="after")
    def _slip_scores(self) -> RunSpec:
        if not any(stage == "reward" or stage.startswith("reward/") for stage in self.rollout.slip):
            raise ValueError("rollout.slip needs at least one stage named reward or reward/<name>")
        return self
