"""CustomResourceDefinitions, generated from the kinds' models. Knows no cluster; `trimtab crds` prints them.

Owns names, subresources and printer columns; schema.py turns models into schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from orchestrator.cluster.kinds import GROUP, VERSION, RewardModel, TrainingRun
from orchestrator.cluster.schema import structural_schema

_CONDITION = '.status.conditions[?(@.type=="{}")].{}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of `kubectl get`. priority 1: only with -o wide."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0
    description: str = ""

    def manifest(self) -> dict[str, Any]:
        """As in a CRD."""
        words = {"description": self.description} if self.description else {}
        return {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "priority": self.priority,
        } | words


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a CRD says beside its schema."""

    model: type[BaseModel]
    plural: str
    short: str
    columns: tuple[Column, ...]
    scale: dict[str, str] | None = None


AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")

DEFINITIONS = (
    Definition(
        model=TrainingRun,
        plural="trainingruns",
        short="trun",
        columns=(
            Column(name="Available", path=_CONDITION.format("Available", "status")),
            Column(name="State", path=_CONDITION.format("Progressing", "reason")),
            Column(name="Step", path=".status.step", type="integer"),
            Column(name="Of", path=".status.steps", type="integer"),
            Column(
                name="Reward",
                path=".status.reward",
                type="number",
                description="Mean score of the last step.",
            ),
            Column(
                name="KL", path=".status.kl", type="number", description="Sequence KL to the reference, nats."
            ),
            Column(name="Policy", path='.status.roles[?(@.name=="policy")].ready', type="integer"),
            Column(
                name="Idle",
                path=".status.learnerIdleShare",
                type="number",
                description="Of the learner's time.",
            ),
            Column(name="Degraded", path=_CONDITION.format("Degraded", "status"), priority=1),
            Column(
                name="Reference",
                path='.status.roles[?(@.name=="reference")].ready',
                type="integer",
                priority=1,
            ),
            Column(name="Version", path=".status.version", priority=1),
            Column(name="Checkpoint", path=".status.lastCheckpoint.step", type="integer", priority=1),
            Column(name="Algorithm", path=".spec.algorithm.kind", priority=1),
            Column(name="Model", path=".spec.model.path", priority=1),
            AGE,
        ),
    ),
    Definition(
        model=RewardModel,
        plural="rewardmodels",
        short="rmod",
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
        columns=(
            Column(name="Available", path=_CONDITION.format("Available", "status")),
            Column(name="Ready", path=".status.readyReplicas", type="integer"),
            Column(name="Replicas", path=".status.replicas", type="integer"),
            Column(name="Runs", path=".status.runs", type="integer", description="That refer to it."),
            Column(name="Address", path=".status.address"),
            Column(name="Backlog", path=".status.backlogRows", type="integer", priority=1),
            Column(name="Scaling", path=".spec.scaling.mode", priority=1),
            Column(name="Digest", path=".status.digest", priority=1),
            AGE,
        ),
    ),
)


def crds() -> list[dict[str, Any]]:
    """Both CustomResourceDefinitions as manifests, the same at every call."""
    return [crd(definition) for definition in DEFINITIONS]


def crd(definition: Definition) -> dict[str, Any]:
    """One CustomResourceDefinition."""
    kind = definition.model.__name__
    subresources: dict[str, Any] = {"status": {}}
    if definition.scale is not None:
        subresources["scale"] = dict(definition.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{definition.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "trimtab"},
            # Deleting a CRD deletes every object of its kind: `helm uninstall` leaves it.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": definition.plural,
                "singular": kind.lower(),
                "shortNames": [definition.short],
                "categories": ["trimtab"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _whole_schema(definition.model)},
                    "subresources": subresources,
                    "additionalPrinterColumns": [column.manifest() for column in definition.columns],
                }
            ],
        },
    }


def crd_yaml(manifest: dict[str, Any]) -> str:
    """As the chart carries it."""
    note = "# Made by `trimtab crds` from orchestrator/cluster/kinds; a test says that it is up to date.\n"
    return note + yaml.safe_dump(manifest, sort_keys=False, width=110, allow_unicode=True)


def _whole_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The kind's schema. What every object has is the API server's to describe, not ours."""
    schema = structural_schema(model)
    properties = dict(schema["properties"])
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    properties["status"].pop("default", None)
    return schema | {"properties": properties, "required": ["spec"]}
