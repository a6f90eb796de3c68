"""mTLS inside a run: which certificates there are, whom each service lets call, whom it expects to find. Pure.

A certificate's common name is <prefix>-<who>, which is one of its DNS names, too: a caller holds on to that name, since
the address of a pod says nothing of who answers there.

| serves | who may call, what for |
|---|---|
| policy | other replicas (weights), client (generate) |
| reference | client (logprobs) |
| reward | client (score) |
| learner | policy (weights), operator (status, checkpoints), client (status) |
| preference | client (preference) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.access.scopes import Scope

QUEUE = "redis"
WATCHER = "operator"
"""Whoever looks on and asks for checkpoints: the operator, or the local orchestrator."""
CLIENT = "client"
"""A person, or a program of somebody else's."""
CALLERS: Mapping[str, Mapping[str, tuple[Scope, ...]]] = {
    "policy": {"policy": ("weights",), CLIENT: ("generate",)},
    "reference": {CLIENT: ("logprobs",)},
    "reward": {CLIENT: ("score",)},
    "learner": {"policy": ("weights",), WATCHER: ("status", "admin"), CLIENT: ("status",)},
    "preference": {CLIENT: ("preference",)},
}
CERTIFICATES = ("policy", "reference", "reward", "learner", QUEUE, WATCHER, CLIENT)
"""Of a run on Kubernetes; people's preferences are collected beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFiles:
    """Paths, as a service sees them: its certificate and key, whom it trusts, and who may call it."""

    certificate: str
    private_key: str
    authority: str
    callers: str


def common_name(prefix: str, who: str) -> str:
    """Of a certificate."""
    return f"{prefix}-{who}"


def callers(role: str, prefix: str) -> dict[str, Any]:
    """The tables of a keys file: certificates that may call a service of this role. See access/keys_file.py."""
    return {
        "certificates": [
            {"name": common_name(prefix, who), "scopes": list(scopes)}
            for who, scopes in CALLERS[role].items()
        ]
    }


def serving(files: OwnFiles) -> dict[str, Any]:
    """[tls] and [access] of a service."""
    return {
        "tls": {
            "certificate": files.certificate,
            "private_key": files.private_key,
            "client_ca": files.authority,
        },
        "access": {"keys_file": files.callers},
    }


def calling(files: OwnFiles, prefix: str, whom: str) -> dict[str, Any]:
    """The fields of a ChannelSpec."""
    return {
        "ca_file": files.authority,
        "certificate_file": files.certificate,
        "private_key_file": files.private_key,
        "server_name": common_name(prefix, whom),
    }


def reading_weights(files: OwnFiles, prefix: str) -> dict[str, Any]:
    """Of a policy's [weights]: from the learner, and from other replicas."""
    return calling(files, prefix, "learner") | {"peer_name": common_name(prefix, "policy")}
