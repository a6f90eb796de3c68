"""The kinds of group trimtab.dev as pydantic models: what the CRDs are made from, and what reads an object."""

from __future__ import annotations

from orchestrator.cluster.kinds.base import GROUP, VERSION, Condition, ObjectMeta, read_object
from orchestrator.cluster.kinds.pods import LearnerRole, PodSettings, ServiceRole
from orchestrator.cluster.kinds.reward_model import RewardModel, RewardModelSpec
from orchestrator.cluster.kinds.run import TrainingRun, TrainingRunSpec
from orchestrator.cluster.kinds.scaling import ScalingSpec
from orchestrator.cluster.kinds.status import RewardModelStatus, RoleStatus, TrainingRunStatus

__all__ = [
    "GROUP",
    "VERSION",
    "Condition",
    "LearnerRole",
    "ObjectMeta",
    "PodSettings",
    "RewardModel",
    "RewardModelSpec",
    "RewardModelStatus",
    "RoleStatus",
    "ScalingSpec",
    "ServiceRole",
    "TrainingRun",
    "TrainingRunSpec",
    "TrainingRunStatus",
    "read_object",
]
