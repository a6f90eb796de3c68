"""More algorithms' settings, one model each; kinds.py says which of them a run can train with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from services.common.spec.algorithms import CriticSpec, KlSpec, PpoSpec
from services.common.spec.base import Spec


class TrpoSpec(CriticSpec):
    """Trust region policy optimisation, arXiv 1502.05477, with RL4LMs' defaults."""

    kind: Literal["trpo"] = "trpo"
    value_model: Literal["shared", "policy", "reward_model"] = Field(
        "policy", description="A model of its own: passes over the values must not move the policy."
    )
    gamma: float = Field(0.99, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten_advantages: bool = True
    kl: KlSpec = KlSpec()
    target_kl: float = Field(0.01, gt=0, description="Radius of the trust region, nats per token.")
    cg_steps: int = Field(15, ge=1, description="Conjugate-gradient steps.")
    damping: float = Field(0.1, ge=0, description="Added to the Fisher matrix' diagonal.")
    backtracking: float = Field(0.8, gt=0, lt=1, description="Factor of the step at each try.")
    backtracking_steps: int = Field(10, ge=1, description="Tries before the step is given up.")
    critic_passes: int = Field(10, ge=0, description="Passes of the value loss after each policy step.")
    curvature_rows: int | None = Field(
        None, ge=1, description="Completions whose second derivative stands for the batch's; left out: all."
    )

    @model_validator(mode="after")
    def _fits(self) -> TrpoSpec:
        if self.epochs > 1:
            raise ValueError(
                "trpo takes one step over a batch: epochs stays 1, critic_passes is the critic's"
            )
        if self.value_model == "shared":
            raise ValueError("trpo's critic is a model of its own: value_model is policy or reward_model")
        if self.kl.placement == "loss":
            raise ValueError("trpo's step knows no loss of KL: kl.placement stays reward")
        if self.entropy_coefficient:
            raise ValueError("trpo's step knows no bonus of entropy: entropy_coefficient stays 0")
        return self

    @property
    def penalty(self) -> KlSpec:
        """See OnlineSpec."""
        return self.kl


class NlpoSpec(PpoSpec):
    """Natural language policy optimisation, arXiv 2210.01241: PPO whose actions a mask bounds."""

    kind: Literal["nlpo"] = "nlpo"  # type: ignore[assignment] # another kind, otherwise PPO
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus of the mask model.")
    min_tokens: int = Field(100, ge=1, description="Actions that stay, however small the nucleus.")
    refresh_every: int = Field(
        1000,
        ge=1,
        description="Updates after which the mask model becomes the policy; in a run at the end of the step.",
    )

    @model_validator(mode="after")
    def _penalty_is_raw(self) -> NlpoSpec:
        if self.kl.placement == "loss":
            raise ValueError("nlpo's KL is of the policy before the mask: kl.placement stays reward")
        return self


class OfflineSpec(Spec):
    """What learns from a file alone: a step takes rollout.batch_groups rows of data.prompts, and is one update."""


class IlqlSpec(OfflineSpec):
    """Implicit language Q-learning, arXiv 2206.11871, with trlX's defaults."""

    kind: Literal["ilql"] = "ilql"
    tau: float = Field(0.7, gt=0, lt=1, description="Expectile of the value loss.")
    gamma: float = Field(0.99, gt=0, le=1)
    cql_scale: float = Field(0.1, ge=0)
    awac_scale: float = Field(1.0, ge=0)
    awac_beta: float = Field(0.0, ge=0, description="Weight exp(beta advantage) of the cloning; 0 is plain.")
    alpha: float = Field(0.001, gt=0, le=1, description="Polyak rate of the target Qs.")
    sync_every: int = Field(5, ge=1, description="Updates between two Polyak steps.")
    beta: float = Field(1.0, ge=0, description="Decoding: weight of min target Q - V.")
    top_k: int = Field(20, ge=0, description="Decoding; 0 is off.")


class DpoSpec(OfflineSpec):
    """Direct preference optimisation, arXiv 2305.18290, with TRL's defaults."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of comparisons that are wrong.")
