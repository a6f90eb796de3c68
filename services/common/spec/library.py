"""Settings of algorithms that the library has and no run can train with yet (NOT_IN_THE_LEARNER), one model each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.spec.algorithms import KlSpec, OnlineSpec, PpoSpec
from services.common.spec.base import Spec


class TrpoSpec(OnlineSpec):
    """Trust region policy optimisation, arXiv 1502.05477, with RL4LMs' defaults."""

    kind: Literal["trpo"] = "trpo"
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
        1000, ge=1, description="Updates after which the mask model becomes the policy."
    )


class IlqlSpec(Spec):
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
    temperature: float = Field(1.0, gt=0, description="Decoding.")


class DpoSpec(Spec):
    """Direct preference optimisation, arXiv 2305.18290, with TRL's defaults."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of comparisons that are wrong.")
