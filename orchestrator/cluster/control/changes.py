"""Whether what is there differs from what is wanted, so that nothing is written that changes nothing. Pure.

Two questions, both about the cache: was this very manifest applied last (its hash stands in an annotation; a field
that is wanted no more shows there), and does every field of it still have the value that was applied (somebody may
have changed it). The server fills in defaults, so more fields than ours are no difference; it rewrites quantities
(0.5 as 500m) and leaves out what is empty, so neither is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from orchestrator.cluster.kinds.base import GROUP
from orchestrator.cluster.render.parts import Manifest, hash_of

APPLIED = f"{GROUP}/applied"
_KEYS = ("name", "mountPath", "containerPort", "port")
"""Of entries of lists, in the order in which they are looked for; what has none is compared by place."""
_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]+)?)([eE][0-9]{1,3}|[numkKMGTPE]|[KMGTPE]i)?$")
_SCALES: Mapping[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    **{letter: Decimal(1000 ** (place + 2)) for place, letter in enumerate("MGTPE")},
    **{f"{letter}i": Decimal(1024 ** (place + 1)) for place, letter in enumerate("KMGTPE")},
}


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself. A Deployment's `replicas` are not part of it: they are named once."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED: _hash(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_current(wanted: Manifest, there: Mapping[str, Any]) -> bool:
    """Whether applying the stamped manifest would change nothing."""
    annotations = there["metadata"].get("annotations") or {}
    if annotations.get(APPLIED) != wanted["metadata"]["annotations"][APPLIED]:
        return False
    return all(covers(there.get(name), value, name) for name, value in wanted.items())


def covers(there: Any, wanted: Any, name: str = "") -> bool:
    """Whether each field of `wanted` has its value in `there`."""
    if there is None:
        return wanted in (None, "", False, 0) or (isinstance(wanted, Mapping | list) and not wanted)
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            covers(there.get(key), value, key) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(there, list) and _list_covers(there, wanted, name)
    return bool(there == wanted) or _same_quantity(there, wanted)


def replicas_are_ours_alone(there: Mapping[str, Any], manager: str) -> bool:
    """Whether `manager` alone owns spec.replicas by apply: then an apply without it would reset it to 1."""
    owners = [
        (entry.get("manager"), entry.get("operation"))
        for entry in there["metadata"].get("managedFields") or ()
        if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
    ]
    return owners == [(manager, "Apply")]


def _hash(manifest: Manifest) -> str:
    spec = manifest.get("spec")
    if manifest["kind"] == "Deployment" and isinstance(spec, Mapping) and "replicas" in spec:
        manifest = {**manifest, "spec": {key: value for key, value in spec.items() if key != "replicas"}}
    return hash_of(manifest)


def _list_covers(there: Sequence[Any], wanted: Sequence[Any], name: str) -> bool:
    key = _key(wanted)
    if key:
        # Webhooks add containers and volumes of their own: only ours are looked at.
        by_key = {item.get(key): item for item in there if isinstance(item, Mapping)}
        return all(covers(by_key.get(item[key]), item) for item in wanted)
    if name in ("ownerReferences", "finalizers"):
        return all(any(covers(item, one) for item in there) for one in wanted)
    return len(there) == len(wanted) and all(map(covers, there, wanted))


def _key(items: Sequence[Any]) -> str:
    """The field that tells these entries apart; empty where none does (port 53 is open for two protocols)."""
    for key in _KEYS:
        values = [item.get(key) for item in items if isinstance(item, Mapping)]
        if (
            values
            and len(values) == len(items)
            and None not in values
            and len(set(map(str, values))) == len(values)
        ):
            return key
    return ""


def _same_quantity(there: Any, wanted: Any) -> bool:
    left, right = _quantity(there), _quantity(wanted)
    return left is not None and left == right


def _quantity(value: Any) -> Decimal | None:
    match = (
        _QUANTITY.match(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    )
    if match is None:
        return None
    number, suffix = match.groups()
    if suffix is not None and suffix[0] in "eE" and len(suffix) > 1 and suffix[1].isdigit():
        return Decimal(number) * Decimal(10) ** int(suffix[1:])
    return Decimal(number) * _SCALES[suffix or ""]
