"""What a role's pods may be told: image, size, place, environment, replicas. Knows no manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from orchestrator.cluster.kinds.affinity import Affinity, LabelKey, LabelValue
from orchestrator.cluster.kinds.base import ATOMIC, Name, SecretKey, map_of, rules
from orchestrator.cluster.kinds.scaling import MOST_REPLICAS, ScalingSpec
from services.common.spec.base import Spec

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE][0-9]{1,3}|[numkKMGTPE]|[KMGTPE]i)?$"


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(max_length=64, pattern=QUANTITY_PATTERN),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 64,
            "pattern": QUANTITY_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A Kubernetes quantity: 500m, 8, 64Gi."""

Overlay = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""Anything that a pod template may have; the API server checks it where the pods are made."""


class Resources(Spec):
    """As in a container."""

    requests: dict[str, Quantity] = Field(default_factory=dict, max_length=16)
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16)


class Toleration(Spec):
    """As in a pod."""

    key: str | None = Field(None, max_length=317)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class ConfigMapKey(Spec):
    """One key of a ConfigMap in the run's namespace."""

    name: Name
    key: str = Field(min_length=1, max_length=253)


class FieldRef(Spec):
    """A field of the pod itself."""

    field_path: str = Field(min_length=1, max_length=253)


class EnvSource(Spec):
    """Where a variable's value comes from: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(given, given)",
                "env.valueFrom takes exactly one of secretKeyRef, configMapKeyRef, fieldRef",
            )
        )
    )

    secret_key_ref: SecretKey | None = None
    config_map_key_ref: ConfigMapKey | None = None
    field_ref: FieldRef | None = None

    @model_validator(mode="after")
    def _one(self) -> EnvSource:
        if (
            sum(part is not None for part in (self.secret_key_ref, self.config_map_key_ref, self.field_ref))
            != 1
        ):
            raise ValueError("expected exactly one of secretKeyRef, configMapKeyRef, fieldRef")
        return self


class EnvVar(Spec):
    """One environment variable."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(has(self.value) && has(self.valueFrom))", "env takes value or valueFrom, not both"),
        )
    )

    name: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str | None = Field(None, max_length=4096)
    value_from: EnvSource | None = None

    @model_validator(mode="after")
    def _one(self) -> EnvVar:
        if self.value is not None and self.value_from is not None:
            raise ValueError("expected value or valueFrom, not both")
        return self


class PodSettings(Spec):
    """Image, size, place and environment of a role's pods."""

    image: str = Field(
        "", max_length=512, description="Container image; empty: the operator's for this role."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Name, ...] = Field(
        (), max_length=8, description="Names of Secrets.", json_schema_extra=ATOMIC
    )
    resources: Resources = Field(Resources(), description="Requests and limits of the container.")
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=16, description="Labels of the nodes of this role's pool."
    )
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] = Field((), max_length=16, json_schema_extra=ATOMIC)
    runtime_class_name: Name | None = Field(None, description="For example nvidia.")
    priority_class_name: Name | None = None
    shm_size: Quantity | None = Field(
        None,
        description="Size of /dev/shm, in memory that counts towards the pod's limit; left out: the node's 64 MiB.",
    )
    env: tuple[EnvVar, ...] = Field((), max_length=64, json_schema_extra=map_of("name"))
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=16, description="More labels of the pods."
    )
    settings: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Fields of the service's configuration, as with --set: max_rows: '128'.",
    )
    startup_timeout_seconds: int = Field(
        3600,
        ge=10,
        le=86_400,
        description="From the container's start until it serves: load of the model included.",
    )
    drain_seconds: int = Field(
        10, ge=1, le=600, description="SIGTERM to exit, at most. Notices of spot nodes are short."
    )
    pod_template: Overlay = Field(
        default_factory=dict,
        description="Laid over the pod template {metadata, spec}: maps are merged, containers and volumes by name, "
        "other lists replaced.",
    )


class ServiceRole(PodSettings):
    """A role whose pods are all alike and take groups from a stage."""

    replicas: int = Field(
        1, ge=0, le=MOST_REPLICAS, description="At creation; held there where scaling is Static."
    )
    scaling: ScalingSpec = Field(ScalingSpec(), description="Who decides the number of replicas.")
    pool: str = Field(
        "",
        max_length=63,
        description="Roles that name the same pool share its poolLimit; empty: a pool of its own.",
    )
    price: float = Field(
        1.0, ge=0, description="Of one replica for an hour, in any unit that all roles share."
    )
    slots: int = Field(1, ge=1, le=4096, description="Groups that one replica works on at the same time.")


GPU = "nvidia.com/gpu"


class LearnerRole(PodSettings):
    """The learner: `replicas` pods, each with `nprocPerNode` processes, that begin and end together."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.replicas * self.nprocPerNode <= 4096",
                "roles.learner: replicas times nprocPerNode is the number of processes, at most 4096",
            ),
            (
                (
                    f"!has(self.resources.limits) || !('{GPU}' in self.resources.limits) || "
                    f"string(self.resources.limits['{GPU}']) == string(self.nprocPerNode)"
                ),
                f"roles.learner: nprocPerNode must equal the limit of {GPU}: one process per GPU",
            ),
        )
    )

    replicas: int = Field(1, ge=1, le=1024, description="Pods (nodes) of the learner.")
    nproc_per_node: int = Field(
        1, ge=1, le=64, description="Processes in each pod, one per GPU; as torchrun's."
    )
    price: float = Field(
        1.0, ge=0, description="Of the whole learner for an hour, in the unit of the roles' price."
    )

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun starts it."""
        return self.replicas * self.nproc_per_node > 1

    @model_validator(mode="after")
    def _processes(self) -> LearnerRole:
        if self.replicas * self.nproc_per_node > 4096:
            raise ValueError("replicas times nprocPerNode must be at most 4096")
        gpus = self.resources.limits.get(GPU)
        if gpus is not None and gpus != str(self.nproc_per_node):
            raise ValueError(f"nprocPerNode must equal the limit of {GPU}: one process per GPU")
        return self
