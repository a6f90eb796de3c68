"""TrainingRun: one run of RLHF. Its sections are the models that every service validates with."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from orchestrator.cluster.kinds.base import Cidr, Name, ObjectMeta, SecretKey, immutable, map_of, rules
from orchestrator.cluster.kinds.engine import ENGINE_RULES, ENGINE_TOGETHER
from orchestrator.cluster.kinds.pods import LearnerRole, ServiceRole
from orchestrator.cluster.kinds.reward_model import NAMED_WELL
from orchestrator.cluster.kinds.rewards import STAGE_PATTERN, TRAINED, RewardStage
from orchestrator.cluster.kinds.stages import Stages
from orchestrator.cluster.kinds.status import TrainingRunStatus
from orchestrator.cluster.kinds.storage import ModelCacheSpec, RedisSpec, StorageSpec
from services.common.spec.algorithms import PpoSpec
from services.common.spec.base import Spec
from services.common.spec.engine import EngineSpec, unfit_for_training
from services.common.spec.kinds import AlgorithmSpec, check_kind
from services.common.spec.library import NlpoSpec
from services.common.spec.metric_logs import LoggingSpec
from services.common.spec.run import (
    CheckpointSpec,
    DataSpec,
    OptimiserSpec,
    RolloutSpec,
    RunSpec,
    SamplingSpec,
    alone_because,
)
from services.common.spec.service import ModelSpec
from services.common.spec.watch import WatchSpec

MOST_REWARDS = 16
KUEUE_REWARDS = 5
"""Kueue's Workload has at most 8 sets of pods: policy, reference, learner, and these."""


class Roles(Spec):
    """Pods of each role."""

    policy: ServiceRole = Field(ServiceRole(), description="Generates completions.")
    reference: ServiceRole = Field(ServiceRole(), description="Log-probs of the frozen reference model.")
    reward: ServiceRole = Field(
        ServiceRole(), description="Scores; each stage reward/<name> has its own pods."
    )
    learner: LearnerRole = Field(LearnerRole(), description="Trains.")


class QueueingSpec(Spec):
    """Kueue: the run is admitted as one Workload, all roles together or none."""

    queue_name: Name = Field(description="LocalQueue in the run's namespace.")
    priority_class: Name | None = Field(None, description="WorkloadPriorityClass.")


class RunTlsSpec(Spec):
    """mTLS between all services of the run, and TLS to its own queue server."""

    secret_prefix: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=48, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
        ]
        | None
    ) = Field(
        None,
        description="Secrets <prefix>-policy, -reference, -reward, -learner, -redis, -operator, of type "
        "kubernetes.io/tls with ca.crt, as `trimtab certs --run` writes them; left out: <run>-tls.",
    )


class NetworkSpec(Spec):
    """What the NetworkPolicies let out beside the picture."""

    policies: bool = Field(True, description="False: none are made.")
    fabric: bool = Field(
        False,
        description="Learner and policy pods share a fabric (NVLink, InfiniBand): weights go over it, by NCCL between "
        "GPUs, by gloo between processors. In the clear, between any of their ports.",
    )
    internet: bool | None = Field(
        None,
        description="Port 443 of public addresses; left out: where a model comes from a hub or a store is used.",
    )
    egress_cidrs: tuple[Cidr, ...] = Field(
        (),
        max_length=16,
        description="More that all roles may reach.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


MOST_STAGES = 64
"""As of any list whose model names no bound."""
_SAME = {
    "self.algorithm.kind == oldSelf.algorithm.kind": (
        "algorithm.kind cannot change once the run exists: make another run"
    ),
    "!has(oldSelf.redis) || has(self.redis) && has(self.redis.url) == has(oldSelf.redis.url) && "
    "has(self.redis.urlSecret) == has(oldSelf.redis.urlSecret) && "
    "has(self.redis.usersSecret) == has(oldSelf.redis.usersSecret)": (
        "redis cannot move to another server once the run exists: its rollouts are in the one it has"
    ),
    "has(self.redis.url) || has(self.redis.urlSecret) || has(self.redis.usersSecret) || "
    "self.rollout.reference == oldSelf.rollout.reference && "
    "self.rollout.slip.size() <= oldSelf.rollout.slip.size() && "
    f"{list(range(MOST_STAGES))}.all(at, at >= self.rollout.slip.size() || "
    "self.rollout.slip[at] == oldSelf.rollout.slip[at])": (
        "rollout.slip can only lose its last stages, and rollout.reference cannot change, once the run exists: "
        "its own queue server knows its stages by user and password; make another run"
    ),
    "oldSelf.suspend || has(self.queueing) == has(oldSelf.queueing) && "
    "(!has(self.queueing) || self.queueing == oldSelf.queueing)": "queueing can change only while suspended",
    "has(self.tls) == has(oldSelf.tls)": (
        "tls cannot be turned on or off once the run exists: services of both kinds would not reach each other"
    ),
}
_FABRIC_AND_TLS = "network.fabric sends weights in the clear: expected none in a run with tls"
_ONE_MODEL = (
    "rollout.slip: the pods of a stage reward/model and of the job stages.rewardModel would be called alike: give the "
    "stage another name"
)
_TOGETHER = (
    ("!has(self.tls) || !has(self.network.fabric) || !self.network.fabric", _FABRIC_AND_TLS),
    (
        "self.rollout.slip.exists(stage, stage == 'reward' || stage.startsWith('reward/'))",
        "rollout.slip needs at least one stage named reward or reward/<name>",
    ),
    (
        f"self.rollout.slip.all(stage, stage.matches('{STAGE_PATTERN}'))",
        "rollout.slip: stages are policy, reference, reward, reward/<name of at most 16 of a-z, 0-9 and ->",
    ),
    (
        (
            "(has(self.rewardModel) && self.rewardModel != '') || has(self.stages.rewardModel) || "
            "self.rollout.slip.all(stage, !stage.startsWith('reward') || "
            "self.rewards.exists(reward, reward.stage == stage))"
        ),
        "every reward stage of rollout.slip needs an entry in rewards, or rewardModel or stages.rewardModel for all",
    ),
    (
        "!has(self.stages.rewardModel) || self.rollout.slip.all(stage, stage != 'reward/model')",
        _ONE_MODEL,
    ),
    (
        "self.algorithm.kind != 'trpo' || self.roles.learner.replicas * self.roles.learner.nprocPerNode == 1",
        "roles.learner: trpo trains in one process",
    ),
    (
        (
            "!has(self.optimiser.weightAverage) || "
            "self.roles.learner.replicas * self.roles.learner.nprocPerNode == 1"
        ),
        "roles.learner: optimiser.weightAverage is kept by one process alone",
    ),
    (
        (
            "!has(self.queueing) || self.rollout.slip.filter(stage, stage.startsWith('reward')).size() "
            f"<= {KUEUE_REWARDS}"
        ),
        f"queueing: Kueue admits at most {KUEUE_REWARDS} reward stages together with the other roles",
    ),
    *ENGINE_TOGETHER,
)


def by_field(schema: dict[str, Any]) -> None:
    """A table left out has what its fields have by themselves: all of it would hold numbers that a preset is to set."""
    schema["default"] = {}


_NOT_SHARED = ("name", "reward_sources")
"""Of RunSpec: the object has a name of its own, and several rewards are stages of the slip here."""


class TrainingRunSpec(Spec):
    """What is wanted of a run."""

    model_config = ConfigDict(json_schema_extra=rules(*_TOGETHER, *_SAME.items()))

    model: ModelSpec = Field(
        description="The model that is trained, and the reference.",
        json_schema_extra=rules(immutable("model")),
    )
    data: DataSpec = Field(description="Prompts.", json_schema_extra=rules(immutable("data")))
    seed: int = Field(
        1,
        ge=0,
        lt=2**31,
        description="Of data order and sampling.",
        json_schema_extra=rules(immutable("seed")),
    )
    steps: int = Field(32, ge=1, description="More of them continue a finished run.")
    sampling: SamplingSpec = Field(SamplingSpec(), json_schema_extra=by_field)
    algorithm: AlgorithmSpec = PpoSpec()
    optimiser: OptimiserSpec = Field(OptimiserSpec(), json_schema_extra=by_field)
    rollout: RolloutSpec = RolloutSpec()
    checkpoint: CheckpointSpec = Field(CheckpointSpec(), description="When it is written, how many are kept.")
    engine: EngineSpec = Field(
        EngineSpec(), description="What generates, in the policy's pods.", json_schema_extra=ENGINE_RULES
    )
    engine_key_secret: SecretKey | None = Field(
        None, description="API key of the engine's server; engine.keyFile is where it is mounted."
    )
    logging: LoggingSpec = Field(LoggingSpec(), description="Where metrics go beside the run's own file.")
    watch: WatchSpec = Field(WatchSpec(), description="A second opinion on the completions, and alarms.")
    reward_model: str = Field("", max_length=1024, description="Folder of the reward model, or rule:<name>.")
    rewards: tuple[RewardStage, ...] = Field(
        (),
        max_length=MOST_REWARDS,
        description="Sources of scores, one for each stage that needs its own.",
        json_schema_extra=map_of("stage"),
    )
    stages: Stages = Field(Stages(), description="Jobs before RL, and rounds.")
    roles: Roles = Field(Roles(), description="Pods of each role.")
    storage: StorageSpec = Field(
        description="Where checkpoints go.", json_schema_extra=rules(immutable("storage"))
    )
    redis: RedisSpec = Field(RedisSpec(), description="The server of the run's queue.")
    tls: RunTlsSpec | None = Field(None, description="Encrypt, and know each other; {} is enough.")
    model_cache: ModelCacheSpec = Field(ModelCacheSpec(), description="Where models of a hub are kept.")
    suspend: bool = Field(
        False, description="True: checkpoint, then no pods; false again: continue from there."
    )
    ttl_after_finished: int | None = Field(
        None, ge=0, description="Seconds after which a finished run is deleted; left out: never."
    )
    queueing: QueueingSpec | None = None
    network: NetworkSpec = Field(NetworkSpec(), description="What pods may reach.")
    service_account_name: Name | None = Field(
        None,
        description="For an identity at the object store; its token is never mounted. Left out: one of its own.",
    )
    restart_limit: int = Field(
        10,
        ge=0,
        le=1000,
        description="Failures of the learner in a row, without a new checkpoint, before the run fails.",
    )
    max_staleness_seconds: int = Field(
        120, ge=10, le=3600, description="Metrics older than this are lost: the scaler stands still."
    )

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return check_kind(given)

    def run_spec(self, name: str) -> RunSpec:
        """The run as the services know it. Raises ValueError where its sections do not fit together."""
        shared = {field: getattr(self, field) for field in RunSpec.model_fields if field not in _NOT_SHARED}
        return RunSpec(name=name, **shared)

    def reward_stages(self) -> tuple[str, ...]:
        """The scoring stages of the slip, in order."""
        return tuple(stage for stage in self.rollout.slip if stage.partition("/")[0] == "reward")

    def reward_of(self, stage: str) -> RewardStage:
        """Where a stage's scores come from: its entry, else rewardModel, else the model that the run trains."""
        for entry in self.rewards:
            if entry.stage == stage:
                return entry
        if self.reward_model.startswith("rule:"):
            return RewardStage(stage=stage, rule=self.reward_model.removeprefix("rule:"))
        return RewardStage(stage=stage, path=self.reward_model or TRAINED)

    @model_validator(mode="after")
    def _processes(self) -> TrainingRunSpec:
        problem = alone_because(self.algorithm, self.optimiser, self.rollout)
        if self.roles.learner.is_distributed and problem:
            raise ValueError(f"roles.learner: {problem}")
        return self

    @model_validator(mode="after")
    def _fits(self) -> TrainingRunSpec:
        wrong = [stage for stage in self.rollout.slip if not re.match(STAGE_PATTERN, stage)]
        if wrong:
            raise ValueError(
                f"rollout.slip: {wrong[0]} is no stage: policy, reference, reward, reward/<name>"
            )
        if not self.reward_stages():
            raise ValueError("rollout.slip needs at least one stage named reward or reward/<name>")
        if self.stages.reward_model is not None and "reward/model" in self.rollout.slip:
            raise ValueError(_ONE_MODEL)
        named = {entry.stage for entry in self.rewards}
        missing = [stage for stage in self.reward_stages() if stage not in named]
        if missing and not self.reward_model and self.stages.reward_model is None:
            raise ValueError(f"{missing[0]} needs an entry in rewards, or rewardModel, or stages.rewardModel")
        policy = self.roles.policy
        if self.engine_key_secret is not None and not self.engine.url:
            raise ValueError("engineKeySecret is for an engine at a url")
        told = unfit_for_training(self.engine, plain=self.sampling.plain, decoding="")
        if told:
            raise ValueError(told)
        if self.engine.kind != "transformers" and isinstance(self.algorithm, NlpoSpec):
            raise ValueError("engine: nlpo bounds what is drawn, which only transformers can")
        if self.engine.url and (policy.replicas > 1 or policy.scaling.mode != "Static"):
            raise ValueError(
                "engine.url is one server, which takes weights from one replica: roles.policy.replicas is 1 and its "
                "scaling Static, or give command"
            )
        if self.network.fabric and self.tls is not None:
            raise ValueError(_FABRIC_AND_TLS)
        if self.queueing is not None and len(self.reward_stages()) > KUEUE_REWARDS:
            raise ValueError(f"queueing: at most {KUEUE_REWARDS} reward stages")
        return self


class TrainingRun(BaseModel):
    """One run of RLHF: its model, data and algorithm, and the pods of every role."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, json_schema_extra=NAMED_WELL
    )

    api_version: Literal["trimtab.dev/v1alpha1"] = Field("trimtab.dev/v1alpha1", alias="apiVersion")
    kind: Literal["TrainingRun"] = "TrainingRun"
    metadata: ObjectMeta
    spec: TrainingRunSpec
    status: TrainingRunStatus = TrainingRunStatus()
