"""A user's pod template laid over ours. Knows how lists of a pod are keyed, and no role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
}
"""As in Kubernetes' strategic merge: entries of these lists are told apart by this field."""


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: maps merged, keyed lists merged by key, null removes, all else replaced."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[name] = overlay(under, value)
        elif name in _KEYS and isinstance(under, list) and isinstance(value, list):
            merged[name] = _by_key(under, value, _KEYS[name])
        else:
            merged[name] = value
    return merged


def _by_key(below: list[Any], above: list[Any], key: str) -> list[Any]:
    merged = {item.get(key): item for item in below}
    for item in above:
        name = item.get(key) if isinstance(item, Mapping) else None
        merged[name] = overlay(merged[name], item) if name in merged else item
    return list(merged.values())
