"""Defaults of built-in types where a client would notice them, and the status that objects begin with. Pure."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any

from tests.fakes.kube.resources import Resource

Object = dict[str, Any]
# Keeps a CRD until no object of its kind is left.
INSTANCES = "customresourcecleanup.apiextensions.k8s.io"
_ADDRESSES = itertools.count(10)


def filled(value: Object | None, **defaults: Any) -> Object:
    """With what is not there."""
    return defaults | (value or {})


def defaulted(resource: Resource, obj: Object, old: Object | None) -> Object:
    """An object with the defaults of its type."""
    fill = _DEFAULTS.get(resource.qualified)
    return fill(obj, old) if fill else obj


def _pod_spec(spec: Object) -> Object:
    found = filled(
        spec, restartPolicy="Always", dnsPolicy="ClusterFirst", schedulerName="default-scheduler", securityContext={},
        terminationGracePeriodSeconds=30,
    )  # fmt: skip
    for name in ("containers", "initContainers"):
        if name in found:
            found[name] = [_container(each) for each in found[name]]
    if "volumes" in found:
        found["volumes"] = [_volume(each) for each in found["volumes"]]
    if found.get("serviceAccountName"):
        found = filled(found, serviceAccount=found["serviceAccountName"])
    return found


def _container(container: Object) -> Object:
    image = str(container.get("image", "")).rpartition("/")[2]
    latest = "@" not in image and (":" not in image or image.endswith(":latest"))
    found = filled(
        container, imagePullPolicy="Always" if latest else "IfNotPresent", resources={},
        terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File",
    )  # fmt: skip
    if "ports" in found:
        found["ports"] = [filled(port, protocol="TCP") for port in found["ports"]]
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in found:
            found[name] = _probe(found[name])
    if "env" in found:
        found["env"] = [_variable(each) for each in found["env"]]
    return found


def _probe(probe: Object) -> Object:
    found = filled(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
    if "httpGet" in found:
        found["httpGet"] = filled(found["httpGet"], path="/", scheme="HTTP")
    if "grpc" in found:
        found["grpc"] = filled(found["grpc"], service="")
    return found


def _variable(each: Object) -> Object:
    source = each.get("valueFrom", {})
    if "fieldRef" not in source:
        return each
    return each | {"valueFrom": source | {"fieldRef": filled(source["fieldRef"], apiVersion="v1")}}


def _volume(volume: Object) -> Object:
    found = dict(volume)
    for name in ("configMap", "secret", "projected", "downwardAPI"):
        if name in found:
            found[name] = filled(found[name], defaultMode=420)
    return found


def _with_template(spec: Object) -> Object:
    template = spec.get("template")
    if not isinstance(template, dict) or "spec" not in template:
        return spec
    return spec | {"template": template | {"spec": _pod_spec(template["spec"])}}


def _deployment(obj: Object, _: Object | None) -> Object:
    spec = filled(_with_template(obj.get("spec") or {}), replicas=1, revisionHistoryLimit=10,
                  progressDeadlineSeconds=600)  # fmt: skip
    strategy = filled(spec.get("strategy"), type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy["rollingUpdate"] = filled(
            strategy.get("rollingUpdate"), maxSurge="25%", maxUnavailable="25%"
        )
    return obj | {"spec": spec | {"strategy": strategy}}


def _statefulset(obj: Object, _: Object | None) -> Object:
    spec = filled(_with_template(obj.get("spec") or {}), replicas=1, revisionHistoryLimit=10,
                  podManagementPolicy="OrderedReady")  # fmt: skip
    strategy = filled(spec.get("updateStrategy"), type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy["rollingUpdate"] = filled(strategy.get("rollingUpdate"), partition=0)
    return obj | {"spec": spec | {"updateStrategy": strategy}}


def _job(obj: Object, old: Object | None) -> Object:
    spec = _with_template(obj.get("spec") or {})
    if "completions" not in spec and "parallelism" not in spec:
        spec = filled(spec, completions=1)
    spec = filled(spec, parallelism=1, backoffLimit=6, completionMode="NonIndexed", suspend=False,
                  podReplacementPolicy="Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")  # fmt: skip
    if old is not None or spec.get("manualSelector") or not isinstance(spec.get("template"), dict):
        return obj | {"spec": spec}
    return obj | {"spec": _selected(spec, obj["metadata"])}


def _selected(spec: Object, meta: Object) -> Object:
    """A Job's selector, made from its uid, and its pods' labels."""
    uid, name = meta["uid"], meta["name"]
    labels = {"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid,
              "batch.kubernetes.io/job-name": name, "job-name": name}  # fmt: skip
    template = spec["template"]
    above = template.get("metadata") or {}
    template = template | {"metadata": above | {"labels": (above.get("labels") or {}) | labels}}
    selector = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    return spec | {"template": template, "selector": selector}


def _pod(obj: Object, _: Object | None) -> Object:
    return obj | {"spec": _pod_spec(obj.get("spec") or {})}


def _service(obj: Object, old: Object | None) -> Object:
    spec = filled(obj.get("spec"), type="ClusterIP", sessionAffinity="None", internalTrafficPolicy="Cluster")
    if "ports" in spec:
        spec["ports"] = [filled(port, protocol="TCP", targetPort=port.get("port")) for port in spec["ports"]]
    if spec["type"] != "ExternalName":
        spec = filled(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
        given = spec.get("clusterIP") or ((old or {}).get("spec") or {}).get("clusterIP")
        spec["clusterIP"] = given or _address()
        spec["clusterIPs"] = [spec["clusterIP"]]
    return obj | {"spec": spec}


def _address() -> str:
    number = next(_ADDRESSES)
    return f"10.96.{number // 250 % 250}.{number % 250 + 1}"


def _namespace(obj: Object, _: Object | None) -> Object:
    labels = (obj["metadata"].get("labels") or {}) | {"kubernetes.io/metadata.name": obj["metadata"]["name"]}
    spec = filled(obj.get("spec"), finalizers=["kubernetes"])
    return obj | {"metadata": obj["metadata"] | {"labels": labels}, "spec": spec}


def _network_policy(obj: Object, _: Object | None) -> Object:
    spec = obj.get("spec") or {}
    types = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    return obj | {"spec": filled(spec, policyTypes=types)}


def _claim(obj: Object, _: Object | None) -> Object:
    return obj | {"spec": filled(obj.get("spec"), volumeMode="Filesystem")}


def _secret(obj: Object, _: Object | None) -> Object:
    found = filled(obj, type="Opaque")
    texts = found.pop("stringData", None)
    if texts:
        coded = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
        found["data"] = (found.get("data") or {}) | coded
    return found


def _crd(obj: Object, _: Object | None) -> Object:
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    kind = names.get("kind", "")
    spec = filled(spec, conversion={"strategy": "None"})
    spec["names"] = filled(names, listKind=f"{kind}List", singular=kind.lower())
    meta = obj["metadata"]
    finalizers = meta.get("finalizers") or []
    if not meta.get("deletionTimestamp") and INSTANCES not in finalizers:
        meta = meta | {"finalizers": [*finalizers, INSTANCES]}
    return obj | {"metadata": meta, "spec": spec}


_DEFAULTS: dict[str, Callable[[Object, Object | None], Object]] = {
    "deployments.apps": _deployment,
    "statefulsets.apps": _statefulset,
    "jobs.batch": _job,
    "pods": _pod,
    "services": _service,
    "namespaces": _namespace,
    "networkpolicies.networking.k8s.io": _network_policy,
    "persistentvolumeclaims": _claim,
    "secrets": _secret,
    "customresourcedefinitions.apiextensions.k8s.io": _crd,
}

_STATUS: dict[str, Object] = {
    "namespaces": {"phase": "Active"},
    "pods": {"phase": "Pending", "qosClass": "BestEffort"},
    "persistentvolumeclaims": {"phase": "Pending"},
    "services": {"loadBalancer": {}},
    "deployments.apps": {},
    "statefulsets.apps": {"replicas": 0, "availableReplicas": 0},
    "jobs.batch": {},
}


def started(resource: Resource, obj: Object) -> Object:
    """A new object with the status that it begins with."""
    if resource.plural == "customresourcedefinitions":
        return obj | {"status": _established(obj)}
    status = _STATUS.get(resource.qualified)
    return obj if status is None else obj | {"status": status}


def _established(crd: Object) -> Object:
    names = crd["spec"]["names"]
    stored = [version["name"] for version in crd["spec"]["versions"] if version["storage"]]
    common = {"status": "True", "lastTransitionTime": crd["metadata"]["creationTimestamp"]}
    return {
        "acceptedNames": names,
        "storedVersions": stored,
        "conditions": [
            common | {"type": "NamesAccepted", "reason": "NoConflicts", "message": "no conflicts found"},
            common | {"type": "Established", "reason": "InitialNamesAccepted",
                      "message": "the initial names have been accepted"},
        ],
    }  # fmt: skip
