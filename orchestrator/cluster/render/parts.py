"""Parts that manifests are put together from: metadata, owner, hash, containers' security. Knows no role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.kinds import ObjectMeta
from orchestrator.cluster.kinds.base import API_VERSION

Manifest = dict[str, Any]


def manifest(
    api_version: str,
    kind: str,
    name: str,
    *,
    owner: Owner,
    labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    """A whole object in the owner's namespace, with its owner reference."""
    metadata: Manifest = {"name": name, "namespace": owner.namespace, "labels": dict(sorted(labels.items()))}
    if annotations:
        metadata["annotations"] = dict(sorted(annotations.items()))
    if owner.references:
        metadata["ownerReferences"] = owner.references
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


class Owner:
    """The object that everything rendered belongs to."""

    def __init__(self, kind: str, metadata: ObjectMeta) -> None:
        self.namespace = metadata.namespace
        # Without a uid (rendered from a file, not from a cluster) there is nothing to refer to.
        self.references: list[Manifest] = (
            [
                {
                    "apiVersion": API_VERSION,
                    "kind": kind,
                    "name": metadata.name,
                    "uid": metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ]
            if metadata.uid
            else []
        )


def config_map(name: str, files: Mapping[str, str], owner: Owner, labels: Mapping[str, str]) -> Manifest:
    """A ConfigMap of text files."""
    return manifest("v1", "ConfigMap", name, owner=owner, labels=labels, data=dict(files))


def hash_of(*contents: object) -> str:
    """16 hex digits that change when any of the contents does."""
    text = json.dumps(contents, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def container_security() -> Manifest:
    """What Pod Security `restricted` asks of a container, and a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_security(user: int) -> Manifest:
    """What Pod Security `restricted` asks of a pod. Volumes belong to the group, so that it can write."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def port(name: str, number: int) -> Manifest:
    """A container's port. The protocol is named, since it is part of the key of server-side apply."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def service_port(name: str, number: int) -> Manifest:
    """A Service's port."""
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}


def headless_service(
    name: str,
    selector: Mapping[str, str],
    ports: Sequence[Manifest],
    *,
    owner: Owner,
    labels: Mapping[str, str],
    not_ready_too: bool = False,
) -> Manifest:
    """A Service whose DNS name gives the pods' own addresses: gRPC balances over them itself."""
    return manifest(
        "v1",
        "Service",
        name,
        owner=owner,
        labels=labels,
        spec={
            "clusterIP": "None",
            "publishNotReadyAddresses": not_ready_too,
            "selector": dict(selector),
            "ports": list(ports),
        },
    )


def disruption_budget(
    name: str, selector: Mapping[str, str], owner: Owner, labels: Mapping[str, str]
) -> Manifest:
    """One pod at a time. A pod that does not serve anyway holds no drain up."""
    return manifest(
        "policy/v1",
        "PodDisruptionBudget",
        name,
        owner=owner,
        labels=labels,
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": dict(selector)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


def service_account(name: str, owner: Owner, labels: Mapping[str, str]) -> Manifest:
    """An account without a token: no pod of ours speaks to the API server."""
    return manifest(
        "v1", "ServiceAccount", name, owner=owner, labels=labels, automountServiceAccountToken=False
    )


def given(**fields: Any) -> Manifest:
    """The fields that have something in them. Zero and false are something."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {}, ())}
