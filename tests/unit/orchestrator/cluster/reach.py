"""Who may reach whom under a set of NetworkPolicies: the meaning of networking.k8s.io/v1, small. For tests."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    ip: str


Peer = Pod | Address


def may_reach(policies: Iterable[dict[str, Any]], source: Pod, target: Peer, port: int) -> bool:
    """Whether TCP from source to target's port is let out there and let in here."""
    listed = list(policies)
    goes_out = _allowed(listed, source, "Egress", "egress", "to", target, port)
    comes_in = not isinstance(target, Pod) or _allowed(
        listed, target, "Ingress", "ingress", "from", source, port
    )
    return goes_out and comes_in


def _allowed(
    policies: list[dict[str, Any]], pod: Pod, direction: str, key: str, peers: str, other: Peer, port: int
) -> bool:
    about = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and fits(policy["spec"]["podSelector"], pod.labels)
    ]
    if not about:
        return True
    return any(_rule(rule, peers, pod.namespace, other, port) for spec in about for rule in spec.get(key, ()))


def _rule(rule: dict[str, Any], peers: str, namespace: str, other: Peer, port: int) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(_covers(part, port) for part in ports):
        return False
    return peers not in rule or any(_peer(peer, namespace, other) for peer in rule[peers])


def _covers(part: dict[str, Any], port: int) -> bool:
    return part["protocol"] == "TCP" and part["port"] <= port <= part.get("endPort", part["port"])


def _peer(peer: dict[str, Any], namespace: str, other: Peer) -> bool:
    if isinstance(other, Address):
        block = peer.get("ipBlock")
        if block is None:
            return False
        inside = [
            ipaddress.ip_address(other.ip) in ipaddress.ip_network(cidr) for cidr in block.get("except", ())
        ]
        return ipaddress.ip_address(other.ip) in ipaddress.ip_network(block["cidr"]) and not any(inside)
    if "ipBlock" in peer:
        return False
    there = (
        fits(peer["namespaceSelector"], {NAME: other.namespace})
        if "namespaceSelector" in peer
        else (other.namespace == namespace)
    )
    return there and fits(peer.get("podSelector", {}), other.labels)


def fits(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether labels fit a selector of matchLabels, Exists, In and NotIn."""
    if not selector.get("matchLabels", {}).items() <= dict(labels).items():
        return False
    for wanted in selector.get("matchExpressions", ()):
        if wanted["operator"] == "Exists":
            if wanted["key"] not in labels:
                return False
            continue
        inside = labels.get(wanted["key"]) in wanted["values"]
        if inside != (wanted["operator"] == "In"):
            return False
    return True
