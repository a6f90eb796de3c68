"""Small valid objects, and a kind of the tests' own that has one of everything that a CRD can say."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def config_map(name: str, **data: str) -> Object:
    """With data."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str, *, image: str = "registry.k8s.io/pause:3.10", **spec: Any) -> Object:
    """Of no replicas, so that a real controller leaves it in peace."""
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        } | spec,
    }  # fmt: skip


def job(name: str) -> Object:
    """Suspended, so that a real controller makes no pods."""
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "suspend": True, "backoffLimit": 0,
            "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}],
            }},
        },
    }  # fmt: skip


def pod(name: str, **labels: str) -> Object:
    """That no scheduler places."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    }  # fmt: skip


def service(name: str) -> Object:
    """Headless."""
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "grpc", "port": 50051}]},
    }  # fmt: skip


def widget(name: str, **spec: Any) -> Object:
    """Of the tests' own kind."""
    return {
        "apiVersion": "contract.trimtab.dev/v1", "kind": "Widget", "metadata": {"name": name},
        "spec": {"size": 1} | spec,
    }  # fmt: skip


_ITEM = {
    "type": "object", "required": ["name"],
    "properties": {"name": {"type": "string"}, "value": {"type": "string"}, "weight": {"type": "integer"}},
}  # fmt: skip
_SPEC = {
    "type": "object", "required": ["size"],
    "x-kubernetes-validations": [
        {"rule": "!has(self.most) || self.size <= self.most", "message": "size must be at most most"},
    ],
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 100},
        "most": {"type": "integer"},
        "ratio": {"type": "number", "x-kubernetes-validations": [
            {"rule": "self <= 1.0", "message": "ratio must be at most 1"},
        ]},
        "colour": {"type": "string", "default": "red", "enum": ["red", "green"]},
        "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8, "minLength": 2},
        "fixed": {"type": "string", "x-kubernetes-validations": [
            {"rule": "self == oldSelf", "message": "fixed cannot change"},
        ]},
        "replicas": {"type": "integer", "default": 1},
        "nested": {"type": "object", "default": {}, "properties": {
            "depth": {"type": "integer", "default": 3}, "note": {"type": "string"},
        }},
        "items": {"type": "array", "maxItems": 4, "x-kubernetes-list-type": "map",
                  "x-kubernetes-list-map-keys": ["name"], "items": _ITEM},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "words": {"type": "array", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "limits": {"type": "object", "additionalProperties": {
            "x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}],
        }},
    },
}  # fmt: skip
WIDGETS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.contract.trimtab.dev"},
    "spec": {
        "group": "contract.trimtab.dev", "scope": "Namespaced",
        "names": {"kind": "Widget", "listKind": "WidgetList", "plural": "widgets", "singular": "widget"},
        "versions": [{
            "name": "v1", "served": True, "storage": True,
            "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            }},
            "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                "spec": _SPEC,
                "status": {"type": "object", "properties": {
                    "replicas": {"type": "integer"}, "selector": {"type": "string"}, "phase": {"type": "string"},
                }},
            }}},
        }],
    },
}  # fmt: skip
