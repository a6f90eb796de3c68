"""What built-in types refuse: missing fields, what cannot change, selectors that miss their own pods. Pure.

Not all that the real one checks: what a client that renders and applies manifests runs into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.kube.errors import Cause, forbidden_value, invalid_value, required_value
from tests.fakes.kube.resources import Resource, custom_resources
from tests.fakes.kube.rules import uncompiled
from tests.fakes.kube.schema import ABSENT
from tests.fakes.kube.schema import violations as schema_violations
from tests.fakes.kube.selectors import labels_match, selector_requirements

Object = dict[str, Any]

# Types whose OpenAPI calls fields required that the server does not ask for.
_LENIENT = {"events", "nodes"}


def violations(resource: Resource, obj: Object, old: Object | None) -> Iterator[Cause]:
    """All that is wrong with it."""
    shape = resource.shape
    for name, value in obj.items():
        inner = shape.field(name)
        if inner is None or name in ("metadata", "status"):
            continue
        before = ABSENT if old is None else old.get(name, ABSENT)
        for cause in schema_violations(inner, value, before, name):
            if resource.plural not in _LENIENT or cause.reason != "FieldValueRequired":
                yield cause
    if "spec" in shape.schema.get("required", ()) and "spec" not in obj:
        yield required_value("spec")
    check = _CHECKS.get(resource.qualified)
    if check:
        yield from check(obj, old)


def _unchanged(obj: Object, old: Object | None, *names: str) -> Iterator[Cause]:
    """Fields of spec that cannot change."""
    for name in names:
        if old is not None and obj["spec"].get(name) != old["spec"].get(name):
            yield invalid_value(f"spec.{name}", obj["spec"].get(name), "field is immutable")


def _matched(obj: Object) -> Iterator[Cause]:
    """A workload's selector must find the pods of its template."""
    spec = obj.get("spec") or {}
    if not spec.get("selector") or not isinstance(spec.get("template"), dict):
        return
    meta = {"labels": {}} | (spec["template"].get("metadata") or {})
    if not labels_match(selector_requirements(spec["selector"]), {"metadata": meta}):
        why = "`selector` does not match template `labels`"
        yield invalid_value("spec.template.metadata.labels", meta["labels"], why)


def _restarts(obj: Object, *allowed: str) -> Iterator[Cause]:
    template = (obj.get("spec") or {}).get("template") or {}
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy is not None and policy not in allowed:
        supported = ", ".join(f'"{name}"' for name in allowed)
        why = f'Unsupported value: "{policy}": supported values: {supported}'
        yield Cause("FieldValueNotSupported", why, "spec.template.spec.restartPolicy")


def _deployment(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _unchanged(obj, old, "selector")
    yield from _matched(obj)
    yield from _restarts(obj, "Always")
    if obj.get("spec", {}).get("replicas", 0) < 0:
        yield invalid_value("spec.replicas", obj["spec"]["replicas"], "must be greater than or equal to 0")


_SET_MAY_CHANGE = {"replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds",
                   "persistentVolumeClaimRetentionPolicy"}  # fmt: skip


def _statefulset(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _matched(obj)
    yield from _restarts(obj, "Always")
    if old is None:
        return
    names = obj["spec"].keys() | old["spec"].keys()
    if any(obj["spec"].get(name) != old["spec"].get(name) for name in names - _SET_MAY_CHANGE):
        listed = ("'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', "
                  "'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds'")  # fmt: skip
        yield forbidden_value(
            "spec", f"updates to statefulset spec for fields other than {listed} are forbidden"
        )


def _job(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    # A suspended Job that has not begun may change where its pods are placed.
    placed = bool(old and old["spec"].get("suspend") and not (old.get("status") or {}).get("startTime"))
    fixed = ("selector", "completionMode") if placed else ("selector", "completionMode", "template")
    yield from _unchanged(obj, old, *fixed)
    if spec.get("completionMode") != "Indexed":
        yield from _unchanged(obj, old, "completions")
    elif spec.get("completions") is None:
        yield required_value("spec.completions", "when completion mode is Indexed")
    yield from _restarts(obj, "OnFailure", "Never")
    if old is None and len(obj["metadata"]["name"]) > 63:
        why = "must be no more than 63 characters"
        yield invalid_value("spec.template.labels", obj["metadata"]["name"], why)


def _service(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    same_type = old is not None and spec.get("type") == old["spec"].get("type")
    if same_type and spec.get("type") != "ExternalName":
        yield from _unchanged(obj, old, "clusterIP")
    if spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName" and not spec.get("ports"):
        yield required_value("spec.ports")
    ports = spec.get("ports") or []
    for place, port in enumerate(ports):
        if len(ports) > 1 and not port.get("name"):
            yield required_value(f"spec.ports[{place}].name")


def _frozen(*names: str) -> Callable[[Object, Object | None], Iterator[Cause]]:
    def check(obj: Object, old: Object | None) -> Iterator[Cause]:
        if old is None or not old.get("immutable"):
            return
        for name in (*names, "immutable"):
            if obj.get(name) != old.get(name):
                yield forbidden_value(name, "field is immutable when `immutable` is set")

    return check


_POD_MAY_CHANGE = {"containers", "initContainers", "activeDeadlineSeconds", "tolerations",
                   "terminationGracePeriodSeconds", "schedulingGates", "nodeName"}  # fmt: skip


def _pod(obj: Object, old: Object | None) -> Iterator[Cause]:
    if not (obj.get("spec") or {}).get("containers"):
        yield required_value("spec.containers")
    if old is None:
        return
    names = obj["spec"].keys() | old["spec"].keys()
    moved = bool(old["spec"].get("nodeName")) and obj["spec"].get("nodeName") != old["spec"].get("nodeName")
    if moved or any(obj["spec"].get(name) != old["spec"].get(name) for name in names - _POD_MAY_CHANGE):
        listed = ("`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
                  "`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` "
                  "(allow it to be set to 1 if it was previously negative)")  # fmt: skip
        yield forbidden_value("spec", f"pod updates may not change fields other than {listed}")


def _claim(obj: Object, old: Object | None) -> Iterator[Cause]:
    if old is None:
        return
    apart = ("resources", "volumeName", "volumeAttributesClassName")
    before, after = (
        {name: value for name, value in each["spec"].items() if name not in apart} for each in (old, obj)
    )
    if before != after:
        open_fields = "resources.requests and volumeAttributesClassName for bound claims"
        why = f"spec is immutable after creation except {open_fields}"
        yield forbidden_value("spec", why)


def _definition(obj: Object, _: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if any(not spec.get(name) for name in ("group", "names", "versions", "scope")):
        return  # the schema has said so
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    if obj["metadata"]["name"] != wanted:
        yield invalid_value(
            "metadata.name", obj["metadata"]["name"], 'must be spec.names.plural+"."+spec.group'
        )
    for place, version in enumerate(spec["versions"]):
        if not (version.get("schema") or {}).get("openAPIV3Schema"):
            yield required_value(f"spec.versions[{place}].schema.openAPIV3Schema", "schemas are required")
            return
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        yield invalid_value("spec.versions", None, "must have exactly one version marked as storage version")
    for place, resource in enumerate(custom_resources(obj)):
        yield from uncompiled(resource.shape, f"spec.versions[{place}].schema.openAPIV3Schema")


_CHECKS: dict[str, Callable[[Object, Object | None], Iterator[Cause]]] = {
    "deployments.apps": _deployment,
    "statefulsets.apps": _statefulset,
    "jobs.batch": _job,
    "services": _service,
    "pods": _pod,
    "configmaps": _frozen("data", "binaryData"),
    "secrets": _frozen("data", "stringData"),
    "persistentvolumeclaims": _claim,
    "customresourcedefinitions.apiextensions.k8s.io": _definition,
}
