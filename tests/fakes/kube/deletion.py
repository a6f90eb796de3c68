"""Deletion: at once, or marked and left to finalizers, a grace period or the collector.

DELETE ─▶ nothing keeps it ─────────────────────────────▶ gone
       └▶ finalizers, a running pod, Foreground, Orphan ─▶ deletionTimestamp … ─▶ last finalizer goes ─▶ gone
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tests.fakes.kube import errors
from tests.fakes.kube.decoding import Target
from tests.fakes.kube.metadata import gone_after
from tests.fakes.kube.store import Object, Store, Stored

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """As in the body or the query of a DELETE. `propagation` empty: the resource's own."""

    propagation: str = ""
    grace: int | None = None
    uid: str = ""
    version: str = ""
    dry_run: bool = False

    @classmethod
    def read(cls, body: Any, query: dict[str, str]) -> DeleteOptions:
        """From a request."""
        sent = body if isinstance(body, dict) else {}
        wanted = sent.get("preconditions") or {}
        orphan = sent.get(
            "orphanDependents", {"true": True, "false": False}.get(query.get("orphanDependents", ""))
        )
        old_style = {True: "Orphan", False: "Background"}.get(orphan, "") if orphan is not None else ""
        grace = sent.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        return cls(
            propagation=sent.get("propagationPolicy") or query.get("propagationPolicy", "") or old_style,
            grace=None if grace is None else int(grace),
            uid=wanted.get("uid", ""),
            version=wanted.get("resourceVersion", ""),
            dry_run=bool(sent.get("dryRun") or query.get("dryRun")),
        )


def delete(
    store: Store, target: Target, old: Stored, options: DeleteOptions, now: str
) -> tuple[Stored, bool]:
    """Delete an object: what it is now, and whether it is gone. Under the store's lock."""
    resource, meta = target.resource, old.obj["metadata"]
    for name, wanted, found, perhaps in (
        ("UID", options.uid, meta["uid"], "deleted and then recreated"),
        ("ResourceVersion", options.version, str(old.version), "modified"),
    ):
        if wanted and wanted != found:
            why = f"the {name} in the precondition ({wanted}) does not match the {name} in record ({found}). "
            raise errors.conflict(
                resource.group, resource.plural, old.name, f"{why}The object might have been {perhaps}"
            )
    new = _marked(resource.storage, old.obj, options, now)
    if options.dry_run:
        return old, False
    if gone_after(new):
        return store.remove(resource.storage, new), True
    if new == old.obj:
        return old, False
    return store.put(resource.storage, new), False


def _marked(storage: str, obj: Object, options: DeleteOptions, now: str) -> Object:
    """With what a DELETE writes on it."""
    meta = dict(obj["metadata"])
    grace = _grace(storage, obj, options.grace)
    if not meta.get("deletionTimestamp"):
        meta["deletionTimestamp"] = _later(now, grace)
        meta["deletionGracePeriodSeconds"] = grace
        if meta.get("generation"):
            meta["generation"] += 1
    elif grace < meta.get("deletionGracePeriodSeconds", 0):
        meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"] = _later(now, grace), grace
    finalizers = _finalizers(storage, meta.get("finalizers") or [], options.propagation)
    if finalizers or "finalizers" in meta:
        meta["finalizers"] = finalizers
    found = obj | {"metadata": meta}
    if storage == "namespaces":
        found["status"] = (obj.get("status") or {}) | {"phase": "Terminating"}
    return found


def _finalizers(storage: str, current: list[str], propagation: str) -> list[str]:
    """With the one that tells the collector what to do with dependents."""
    if not propagation and storage == "jobs.batch":
        propagation = "Orphan"  # batch/v1 keeps pods unless it is told otherwise
    apart = [name for name in current if name not in (FOREGROUND, ORPHAN)] if propagation else list(current)
    added = {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(propagation, [])
    return [*apart, *added]


def _grace(storage: str, obj: Object, wanted: int | None) -> int:
    """Seconds that a pod has to end; all else has none."""
    if storage != "pods" or not (obj.get("spec") or {}).get("nodeName"):
        return 0
    if (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    return int(obj["spec"].get("terminationGracePeriodSeconds", 30)) if wanted is None else wanted


def _later(now: str, seconds: int) -> str:
    return (datetime.fromisoformat(now) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
