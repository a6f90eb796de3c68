"""What the operator tells of a run and of a reward model. Reads leniently: a newer operator may have said more."""

from __future__ import annotations

from pydantic import Field

from orchestrator.cluster.kinds.base import Condition, StatusModel, map_of

CONDITIONS = map_of("type")


class RoleStatus(StatusModel):
    """One role as it is."""

    name: str = Field(max_length=63, description="policy, reference, reward, reward-<name>, learner.")
    desired: int = Field(0, ge=0)
    ready: int = Field(0, ge=0)
    updated: int = Field(0, ge=0, description="Of the present image and configuration.")
    draining: int = Field(0, ge=0)
    wanted: int | None = Field(None, ge=0, description="By the planner.")
    backlog_groups: int | None = Field(None, ge=0, description="Groups on its stage, waiting or worked on.")
    idle_share: float | None = Field(None, ge=0, le=1, description="Of its replicas' time.")
    reason: str = Field("", max_length=1024, description="Why the planner wants that number.")


class CheckpointStatus(StatusModel):
    """The last whole checkpoint."""

    step: int = Field(ge=0)
    epoch: int = Field(0, ge=0)
    path: str = Field("", max_length=1024)
    time: str | None = Field(
        None, max_length=64, description="When it was first seen.", json_schema_extra={"format": "date-time"}
    )


class RolloutStatus(StatusModel):
    """Accounting of groups: admitted = trained + stale + failed + inFlight."""

    admitted: int = Field(0, ge=0)
    trained: int = Field(0, ge=0)
    stale: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)
    in_flight: int = Field(0, ge=0)


class TrainingRunStatus(StatusModel):
    """The run as it is."""

    observed_generation: int = Field(0, ge=0)
    conditions: tuple[Condition, ...] = Field((), max_length=32, json_schema_extra=CONDITIONS)
    stage: str = Field("", max_length=63, description="sft, rewardModel, rl, iterate, done.")
    attempt: int = Field(0, ge=0, description="Of the learner's Job; each begins a new epoch.")
    epoch: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    steps: int = Field(0, ge=0, description="That the run is to have.")
    version: str = Field("", max_length=128, description="Of the policy: epoch.step.")
    reward: float | None = Field(None, description="Mean score of the last step.")
    kl: float | None = Field(None, description="Sequence KL to the reference at the last step, nats.")
    learner_idle_share: float | None = Field(None, ge=0, le=1)
    last_checkpoint: CheckpointStatus | None = None
    rollouts: RolloutStatus | None = None
    roles: tuple[RoleStatus, ...] = Field((), max_length=32, json_schema_extra=map_of("name"))
    start_time: str | None = Field(None, max_length=64, json_schema_extra={"format": "date-time"})
    completion_time: str | None = Field(None, max_length=64, json_schema_extra={"format": "date-time"})
    restarts: int = Field(0, ge=0, description="Learner attempts that ended by failure.")
    failures: int = Field(0, ge=0, description="Those in a row, without a new checkpoint between them.")
    failed_attempt: int = Field(0, ge=0, description="The last attempt that is counted in restarts.")
    failed_step: int = Field(0, ge=0, description="Step of the last checkpoint when it failed.")


class RewardModelStatus(StatusModel):
    """The reward model as it is."""

    observed_generation: int = Field(0, ge=0)
    conditions: tuple[Condition, ...] = Field((), max_length=32, json_schema_extra=CONDITIONS)
    replicas: int = Field(0, ge=0)
    ready_replicas: int = Field(0, ge=0)
    selector: str = Field("", max_length=512, description="Of its pods, for the scale subresource.")
    digest: str = Field("", max_length=256, description="Of the model that is served.")
    address: str = Field("", max_length=512, description="host:port for gRPC.")
    runs: int = Field(0, ge=0, description="Runs that refer to it.")
    backlog_rows: int | None = Field(None, ge=0, description="Rows that wait, over all replicas.")
    rows_per_second: float | None = Field(None, description="Asked for: answered, refused, waiting anew.")
    busy_share: float | None = Field(None, description="Of the replicas' time.")
    wanted: int | None = Field(None, ge=0, description="What the planner wants; absent unless Auto.")
    draining: int = Field(0, ge=0, description="Told to take no more calls, and not gone yet.")
    reason: str = Field("", max_length=1024, description="Why the planner wants this number.")
