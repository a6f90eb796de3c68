"""What `trimtab certs --run` writes for `spec.tls` of a TrainingRun: Secrets, or cert-manager's Certificates. Pure.

One for each of mutual_tls.CERTIFICATES, all named <run>-tls-<who>: the Secret, the certificate's common name, and one
of its DNS names. The queue server's has its host besides, since its clients look for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.names import RunNames
from orchestrator.mutual_tls import CERTIFICATES, QUEUE, common_name

LIFE, RENEWED = "2160h", "720h"
"""Of cert-manager's: 90 days, renewed 30 before their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerRef:
    """Of cert-manager."""

    name: str
    kind: str = "Issuer"


def names_of(names: RunNames) -> dict[str, str]:
    """Who to the name of its certificate."""
    return {who: common_name(names.tls, who) for who in CERTIFICATES}


def hosts_of(names: RunNames, who: str) -> list[str]:
    """DNS names beside the common name."""
    return [names.host(names.redis)] if who == QUEUE else []


def secret(name: str, namespace: str, files: Mapping[str, str]) -> dict[str, Any]:
    """A Secret of type kubernetes.io/tls; `files`: tls.crt, tls.key, ca.crt to their texts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/tls",
        "stringData": dict(files),
    }


def certificate(names: RunNames, who: str, issuer: IssuerRef) -> dict[str, Any]:
    """cert-manager's Certificate, which fills the Secret of the same name and renews it."""
    name = common_name(names.tls, who)
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": names.namespace},
        "spec": {
            "secretName": name,
            "commonName": name,
            "dnsNames": [name, *hosts_of(names, who)],
            "usages": ["digital signature", "server auth", "client auth"],
            "duration": LIFE,
            "renewBefore": RENEWED,
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": "cert-manager.io"},
        },
    }
