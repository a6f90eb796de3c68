"""Where a run's scores come from: its stages of scoring, and the RewardModels that several runs share."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from orchestrator.cluster.kinds.base import Name, SecretKey, rules
from orchestrator.cluster.kinds.pods import ServiceRole
from orchestrator.cluster.kinds.reward_model import Digest
from orchestrator.cluster.kinds.storage import one_of
from services.common.spec.base import Spec

STAGE_PATTERN = r"^(policy|reference|reward(/[a-z0-9]([-a-z0-9]{0,14}[a-z0-9])?)?)$"
"""A stage on Kubernetes: Services are named after it."""
TRAINED = "this-run"
"""Path of the reward model that the run itself trains, in stages.rewardModel."""


class RefTlsSpec(Spec):
    """How the bridge worker speaks TLS with the RewardModel. Secrets are of the run's namespace."""

    ca_secret: SecretKey | None = Field(
        None, description="Authorities to trust, PEM; left out: those that gRPC brings."
    )
    client_secret: Name | None = Field(
        None, description="Secret of type kubernetes.io/tls, where the RewardModel asks for a certificate."
    )


class RewardModelRef(Spec):
    """A RewardModel that serves several runs; a small bridge worker of the run's own calls it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.keySecret) || has(self.tls) || self.allowPlaintext",
                "keySecret without tls would send the key in the clear: give tls, or allowPlaintext",
            )
        )
    )

    name: Name = Field(description="The RewardModel.")
    namespace: Name | None = Field(None, description="Left out: the run's own.")
    digest: Digest | None = Field(
        None,
        description="Groups fail, and with them the run, rather than take scores of another model; as the "
        "RewardModel's status has it. Left out: whatever serves.",
    )
    key_secret: SecretKey | None = Field(None, description="API key, where the RewardModel asks for one.")
    tls: RefTlsSpec | None = Field(None, description="Where the RewardModel has tls.")
    allow_plaintext: bool = Field(
        False, description="Send the key without TLS, because a mesh encrypts between the pods."
    )

    @model_validator(mode="after")
    def _safe(self) -> RewardModelRef:
        if self.key_secret is not None and self.tls is None and not self.allow_plaintext:
            raise ValueError("keySecret without tls would send the key in the clear")
        return self


class RewardStage(Spec):
    """One scoring stage of the run, and where its scores come from."""

    model_config = ConfigDict(
        json_schema_extra=one_of(
            "a reward takes exactly one of path, rule, function, rewardModelRef",
            "path",
            "rule",
            "function",
            "rewardModelRef",
        )
    )

    stage: Annotated[str, StringConstraints(max_length=23, pattern=STAGE_PATTERN)] = Field(
        description="Word of rollout.slip: reward, or reward/<name>."
    )
    path: str | None = Field(None, min_length=1, max_length=1024, description="Folder of a reward model.")
    rule: str | None = Field(
        None, min_length=1, max_length=1024, description="sentiment, length:target=40, …"
    )
    function: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="A Python function in the image: entry point of group trimtab.rewards, or package.module:function.",
    )
    reward_model_ref: RewardModelRef | None = None
    role: ServiceRole | None = Field(None, description="Its pods; left out: as roles.reward.")

    @model_validator(mode="after")
    def _one(self) -> RewardStage:
        sources = (self.path, self.rule, self.function, self.reward_model_ref)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("expected exactly one of path, rule, function, rewardModelRef")
        return self
