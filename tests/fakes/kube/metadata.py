"""metadata: what the server stamps on an object, what a write may not touch, which names are names. Pure."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from typing import Any

from tests.fakes.kube.errors import Cause, forbidden_value, invalid_value, required_value
from tests.fakes.kube.resources import Resource

Object = dict[str, Any]

_KEPT = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "name",
         "namespace", "resourceVersion")  # fmt: skip
_LABEL_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL_PART}(\.{_LABEL_PART})*")
_DNS_LABEL = re.compile(_LABEL_PART)
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_FREE_NAMES = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}

_SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SERVICE_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation "
    "is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def generated_name(prefix: str) -> str:
    """The prefix and five letters, as for generateName."""
    return prefix[:58] + "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


def born(resource: Resource, obj: Object, namespace: str, uid: str, now: str) -> Object:
    """A new object with the server's marks."""
    sent = obj.get("metadata") or {}
    meta = {name: value for name, value in sent.items() if name not in (*_KEPT, "managedFields", "selfLink")}
    name = sent.get("name") or (generated_name(sent["generateName"]) if sent.get("generateName") else "")
    meta |= {"name": name, "uid": uid, "creationTimestamp": now}
    if namespace:
        meta["namespace"] = namespace
    if resource.counted:
        meta["generation"] = 1
    return {"apiVersion": resource.api_version, "kind": resource.kind} | obj | {"metadata": meta}


def carried(resource: Resource, subresource: str, old: Object, new: Object) -> Object:
    """A new state with what this endpoint does not write as it was."""
    if subresource == "status":
        found = {name: value for name, value in old.items() if name != "status"}
        if "status" in new:
            found["status"] = new["status"]
        return found
    meta = {
        name: value
        for name, value in (new.get("metadata") or {}).items()
        if name not in (*_KEPT, "managedFields")
    } | {name: old["metadata"][name] for name in _KEPT if name in old["metadata"]}
    found = new | {"metadata": meta}
    if resource.status:
        found.pop("status", None)
        if "status" in old:
            found["status"] = old["status"]
    return found


def counted(resource: Resource, old: Object, new: Object) -> Object:
    """With a generation that is one more where what is wanted has changed."""
    apart = {"metadata", "apiVersion", "kind"} | ({"status"} if resource.status else set())
    wanted = [{name: value for name, value in each.items() if name not in apart} for each in (old, new)]
    if not resource.counted or wanted[0] == wanted[1]:
        return new
    generation = old["metadata"].get("generation", 0) + 1
    return new | {"metadata": new["metadata"] | {"generation": generation}}


def gone_after(obj: Object) -> bool:
    """Whether nothing keeps an object that is to be deleted."""
    meta = obj["metadata"]
    waits = meta.get("deletionGracePeriodSeconds") or (obj.get("spec") or {}).get("finalizers")
    return bool(meta.get("deletionTimestamp")) and not meta.get("finalizers") and not waits


def violations(resource: Resource, obj: Object, old: Object | None) -> Iterator[Cause]:
    """What is wrong with the metadata."""
    meta = obj["metadata"]
    if old is None:
        yield from _name_violations(resource, meta.get("name", ""))
    elif old["metadata"].get("deletionTimestamp"):
        new = sorted(set(meta.get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ()))
        if new:
            listed = ", ".join(f'"{name}"' for name in new)
            why = "no new finalizers can be added if the object is being deleted, "
            why += f"found new finalizers []string{{{listed}}}"
            yield forbidden_value("metadata.finalizers", why)
    yield from _label_violations(meta.get("labels") or {}, "metadata.labels")
    for key in meta.get("annotations") or {}:
        yield from _key_violations(key, "metadata.annotations")
    yield from _owner_violations(meta.get("ownerReferences") or [])


def _name_violations(resource: Resource, name: str) -> Iterator[Cause]:
    if not name:
        yield required_value("metadata.name", "name or generateName is required")
    elif resource.plural in _FREE_NAMES and resource.group == "rbac.authorization.k8s.io":
        return
    elif resource.qualified in ("services", "namespaces"):
        pattern, words = (
            (_SERVICE, _SERVICE_WORDS) if resource.plural == "services" else (_DNS_LABEL, _LABEL_WORDS)
        )
        if not pattern.fullmatch(name):
            yield invalid_value("metadata.name", name, words)
        if len(name) > 63:
            yield invalid_value("metadata.name", name, "must be no more than 63 characters")
    elif not _SUBDOMAIN.fullmatch(name):
        yield invalid_value("metadata.name", name, _SUBDOMAIN_WORDS)
    elif len(name) > 253:
        yield invalid_value("metadata.name", name, "must be no more than 253 characters")


def _label_violations(labels: dict[str, Any], path: str) -> Iterator[Cause]:
    for key, value in labels.items():
        yield from _key_violations(key, path)
        if len(value) > 63:
            yield invalid_value(path, value, "must be no more than 63 bytes")
        if not _VALUE.fullmatch(value):
            yield invalid_value(path, value, _VALUE_WORDS)


def _key_violations(key: str, path: str) -> Iterator[Cause]:
    prefix, slash, name = key.rpartition("/")
    if not name or len(name) > 63 or not _VALUE.fullmatch(name):
        yield invalid_value(path, key, "name part must consist of alphanumeric characters, '-', '_' or '.'")
    if slash and (not _SUBDOMAIN.fullmatch(prefix.lower()) or len(prefix) > 253):
        yield invalid_value(path, key, f"prefix part {_SUBDOMAIN_WORDS}")


def _owner_violations(references: list[dict[str, Any]]) -> Iterator[Cause]:
    for place, each in enumerate(references):
        for name in ("apiVersion", "kind", "name", "uid"):
            if not each.get(name):
                yield invalid_value(f"metadata.ownerReferences[{place}].{name}", "", "must not be empty")
    controllers = [each for each in references if each.get("controller")]
    if len(controllers) > 1:
        why = "Only one reference can have Controller set to true."
        yield invalid_value("metadata.ownerReferences", [each["name"] for each in controllers], why)
