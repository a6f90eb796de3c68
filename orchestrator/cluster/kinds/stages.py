"""What a run consists of: jobs one after another, then reinforcement learning, once or round after round."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from orchestrator.cluster.kinds.base import rules
from orchestrator.cluster.kinds.pods import PodSettings
from services.common.spec.base import Spec


class JobStage(PodSettings):
    """A job that runs to its end before the next stage begins, with one GPU or none."""

    data: str = Field(min_length=1, max_length=1024, description="What it trains on, JSONL.")
    model: str = Field("", max_length=1024, description="Where it begins; empty: spec.model.path.")
    arguments: tuple[Annotated[str, StringConstraints(max_length=1024)], ...] = Field(
        (),
        max_length=64,
        description="More flags of `python -m services.learner.jobs`.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    retries: int = Field(2, ge=0, le=100)


class RlStage(Spec):
    """Reinforcement learning: the sections algorithm, sampling, rollout."""

    enabled: bool = Field(True, description="False: only the jobs before it.")


class IterateStage(Spec):
    """Going round again with fresh comparisons on the new policy."""

    rounds: int = Field(1, ge=1, le=1000, description="1: once, without fresh comparisons.")
    preference_url: str = Field(
        "",
        max_length=512,
        pattern=r"^([^\s/@]+:[0-9]+)?$",
        description="host:port of the preference service.",
    )

    @model_validator(mode="after")
    def _comparisons(self) -> IterateStage:
        if self.rounds > 1 and not self.preference_url:
            raise ValueError("more than one round needs preferenceUrl, where the comparisons come from")
        return self


class Stages(Spec):
    """What the run consists of, always in this order. Left out: RL alone."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.iterate) || self.iterate.rounds == 1 || "
                    "(has(self.iterate.preferenceUrl) && self.iterate.preferenceUrl != '')"
                ),
                "stages.iterate: more than one round needs preferenceUrl, where the comparisons come from",
            )
        )
    )

    sft: JobStage | None = Field(None, description="Supervised fine-tuning of the starting model.")
    reward_model: JobStage | None = Field(None, description="Training of the reward model.")
    rl: RlStage = RlStage()
    iterate: IterateStage | None = None
