"""Variables of a container and what refers to them: fields of the pod, $(NAME), ConfigMaps, Secrets. Pure.

As Kubernetes has it: https://kubernetes.io/docs/tasks/inject-data-application/.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

Object = Mapping[str, Any]
Find = Callable[[str, str], Object | None]
"""(kind, name): a ConfigMap or Secret of the pod's namespace, None where there is none."""
_REFERENCE = re.compile(r"\$(\$|\(([^)]*)\))")
_KEYED = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}  # fmt: skip


class Missing(LookupError):
    """What the pod refers to is not there (yet)."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) replaced where NAME is known, $$ is one $."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replaced, text)


def variables_of(pod: Object, container: Object, base: Mapping[str, str], find: Find) -> dict[str, str]:
    """The whole environment: `base` (of the image), envFrom, env in order. Raises Missing."""
    made = dict(base)
    for source in container.get("envFrom") or ():
        made |= _all_keys(source, find)
    for entry in container.get("env") or ():
        if "valueFrom" in entry:
            value = _value_from(pod, container, entry["valueFrom"], find)
            if value is None:
                continue
            made[entry["name"]] = value
        else:
            made[entry["name"]] = expand(entry.get("value") or "", made)
    return made


def command_of(container: Object, variables: Mapping[str, str]) -> list[str]:
    """command and args, references filled in. Raises Missing where the image would have to know it."""
    if not container.get("command"):
        raise Missing(f"container {container['name']} has no command, and there are no images here")
    words = [*container["command"], *(container.get("args") or ())]
    return [expand(word, variables) for word in words]


def field_of(pod: Object, path: str) -> str:
    """A field for env or a downwardAPI file. Raises Missing for one that Kubernetes does not offer."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    if match := _KEYED.match(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return "\n".join(
            f"{key}={_quoted(value)}" for key, value in sorted((metadata.get(path[9:]) or {}).items())
        )
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": status.get("hostIP", ""),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
    }
    if path not in known:
        raise Missing(f"field {path} cannot be referred to")
    return str(known[path])


def resource_of(container: Object, reference: Object, capacity: Mapping[str, str]) -> str:
    """limits.cpu, requests.memory, …, in units of the divisor, rounded up. A limit left out is the node's."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    value = (resources.get(kind) or {}).get(name)
    if value is None and kind == "limits":
        value = capacity.get(name, "0")
    divisor = quantity(str(reference.get("divisor") or "1")) or Decimal(1)
    return str((quantity(str(value or "0")) / divisor).to_integral_value(ROUND_CEILING))


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: 500m, 8, 64Gi, 1e3."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9+-]+)?)([numkKMGTPE]?i?)", text)
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(match[1]) * _SUFFIXES[match[2]]


def content_of(item: Object) -> dict[str, bytes]:
    """Keys of a ConfigMap or Secret."""
    if item["kind"] == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    found = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return found | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


def _all_keys(source: Object, find: Find) -> dict[str, str]:
    kind, reference = (
        ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source["secretRef"])
    )
    item = find(kind, reference["name"])
    if item is None:
        if reference.get("optional"):
            return {}
        raise Missing(f"{kind} {reference['name']} not found")
    prefix = source.get("prefix") or ""
    return {prefix + key: value.decode() for key, value in content_of(item).items()}


def _value_from(pod: Object, container: Object, source: Object, find: Find) -> str | None:
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource_of(container, source["resourceFieldRef"], {})
    kind, reference = (
        ("ConfigMap", source["configMapKeyRef"])
        if "configMapKeyRef" in source
        else ("Secret", source["secretKeyRef"])
    )
    item = find(kind, reference["name"])
    value = None if item is None else content_of(item).get(reference["key"])
    if value is not None:
        return value.decode()
    if reference.get("optional"):
        return None
    what = (
        f"{kind} {reference['name']} not found"
        if item is None
        else f"{kind} {reference['name']} has no {reference['key']}"
    )
    raise Missing(what)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
