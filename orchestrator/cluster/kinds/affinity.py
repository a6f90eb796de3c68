"""Kubernetes' own affinity, in the fields that are stable since 1.32. Copies names and meaning, decides nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from orchestrator.cluster.kinds.base import ATOMIC
from services.common.spec.base import Spec

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


class NodeRequirement(Spec):
    """A condition on a label or field of a node."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[LabelValue, ...] = Field((), max_length=32, json_schema_extra=ATOMIC)


class NodeTerm(Spec):
    """All of these must hold."""

    match_expressions: tuple[NodeRequirement, ...] = Field((), max_length=16, json_schema_extra=ATOMIC)
    match_fields: tuple[NodeRequirement, ...] = Field((), max_length=4, json_schema_extra=ATOMIC)


class NodeTerms(Spec):
    """One of these must hold."""

    node_selector_terms: tuple[NodeTerm, ...] = Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)


class PreferredNodes(Spec):
    """Nodes that are preferred."""

    weight: int = Field(ge=1, le=100)
    preference: NodeTerm


class NodeAffinity(Spec):
    """On which nodes."""

    required: NodeTerms | None = Field(None, alias="requiredDuringSchedulingIgnoredDuringExecution")
    preferred: tuple[PreferredNodes, ...] = Field(
        (), alias="preferredDuringSchedulingIgnoredDuringExecution", max_length=8, json_schema_extra=ATOMIC
    )


class LabelRequirement(Spec):
    """A condition on a label."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[LabelValue, ...] = Field((), max_length=32, json_schema_extra=ATOMIC)


class LabelSelector(Spec):
    """Objects whose labels fit."""

    match_labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=16)
    match_expressions: tuple[LabelRequirement, ...] = Field((), max_length=16, json_schema_extra=ATOMIC)


class PodTerm(Spec):
    """Pods near which, or away from which, to be."""

    topology_key: LabelKey = Field(description="Label of nodes that says what near means.")
    label_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    namespaces: tuple[LabelValue, ...] = Field((), max_length=16, json_schema_extra=ATOMIC)


class PreferredPods(Spec):
    """Neighbours that are preferred."""

    weight: int = Field(ge=1, le=100)
    pod_affinity_term: PodTerm


class PodAffinity(Spec):
    """Near or away from pods."""

    required: tuple[PodTerm, ...] = Field(
        (), alias="requiredDuringSchedulingIgnoredDuringExecution", max_length=8, json_schema_extra=ATOMIC
    )
    preferred: tuple[PreferredPods, ...] = Field(
        (), alias="preferredDuringSchedulingIgnoredDuringExecution", max_length=8, json_schema_extra=ATOMIC
    )


class Affinity(Spec):
    """As in a pod: which nodes, near which pods, away from which pods."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None
