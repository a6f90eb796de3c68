"""Brings what is there to what is wanted, with as few writes as can be: none where nothing differs. Knows no run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.errors import Conflict, Refused
from orchestrator.cluster.control.changes import APPLIED, is_current, replicas_are_ours_alone, stamped
from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.control.resources import PRUNED, RESOURCES, Object, Ref, owner_of
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.names import MANAGER
from orchestrator.cluster.operator.reflector import slim
from orchestrator.cluster.render import Manifest
from services.common.errors import NotFound

SCALER = "trimtab-scaler"
"""Field manager of whatever concerns numbers of replicas."""
_log = structlog.get_logger(__name__)


class Applier:
    """Writes through one Api, and takes the answers into the store at once, so that the next look sees them."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api, self._store = api, store
        # What was found as applied: object to (resourceVersion, hash). Only saves comparing again.
        self._found: dict[Ref, tuple[str, str]] = {}

    def ensure(self, manifests: Iterable[Manifest]) -> int:
        """Apply those that differ from what is there; how many. Jobs are made if they are not there, never changed."""
        return sum(self._ensure(manifest) for manifest in manifests)

    def _ensure(self, manifest: Manifest) -> bool:
        ref = Ref.of(manifest)
        there = self._store.get(ref)
        if ref.kind == "Job":
            return self._create(manifest) if there is None else self._is_another(manifest, there)
        is_unseen = there is None
        there = self._look(ref) if there is None else there
        wanted = stamped(manifest if there is None else _as_it_is(manifest, there))
        if there is not None and self._is_current(ref, wanted, there):
            return False
        if there is not None and ref.kind == "Deployment":
            self._share_replicas(ref, there)
        answer = self._keep(self._api.apply(wanted, MANAGER), anew=is_unseen)
        self._remember(ref, wanted, answer)
        if there is None and "replicas" in wanted.get("spec", {}) and ref.kind == "Deployment":
            self._share_replicas(ref, answer)
        return True

    def prune(self, owned: Sequence[Object], wanted: Iterable[Manifest], uid: str) -> list[Ref]:
        """Delete what carries our owner's uid and is not wanted. Jobs come and go by other rules."""
        keep = {Ref.of(manifest) for manifest in wanted}
        gone = [
            item
            for item in owned
            if item["kind"] in PRUNED
            and item["kind"] != "Job"
            and Ref.of(item) not in keep
            and belongs_to(item, uid)
            and not item["metadata"].get("deletionTimestamp")
        ]
        for item in gone:
            self.delete(item)
        return [Ref.of(item) for item in gone]

    def delete(self, item: Mapping[str, Any], *, force: bool = False) -> None:
        """Delete this very object; that it is gone already is fine. `force`: without waiting for its end."""
        ref, uid = Ref.of(item), item["metadata"].get("uid", "")
        try:
            answer = self._api.delete(ref, uid, grace_seconds=0 if force else None)
        except (NotFound, Conflict):
            self._store.remove(ref, uid)
            return
        self._found.pop(ref, None)
        if answer.get("kind") == ref.kind and (answer.get("metadata") or {}).get("deletionTimestamp"):
            self._keep(answer)
        else:
            self._store.remove(ref, uid)
        _log.info("deleted", object=f"{ref.kind}/{ref.name}")

    def scale(self, deployment: Object, replicas: int) -> None:
        """Write the number, as `kubectl scale` does."""
        ref = Ref.of(deployment)
        self._api.merge(ref, {"spec": {"replicas": replicas}}, SCALER, "scale")
        # The answer is a Scale, not the Deployment: the next look must not see the old number all the same.
        changed = {**deployment, "spec": {**deployment["spec"], "replicas": replicas}}
        self._store.put(changed)
        _log.info("scaled", deployment=ref.name, replicas=replicas)

    def annotate(self, item: Mapping[str, Any], annotations: Mapping[str, str | None]) -> Object:
        """Set annotations; None removes."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        return self._keep(self._api.merge(Ref.of(item), patch, SCALER))

    def forget(self, refs: Iterable[Ref]) -> None:
        """They belong to what is gone."""
        for ref in refs:
            self._found.pop(ref, None)

    def _create(self, manifest: Manifest) -> bool:
        try:
            self._keep(self._api.create(manifest, MANAGER))
        except Conflict:
            # It is there and the cache does not know yet, or it is on its way out: the watch tells, if it is ours.
            there = self._look(Ref.of(manifest))
            if there is None:
                # Quotas that many write at once are answered in the same way: nothing was made.
                raise
            return self._is_another(manifest, there)
        return True

    def _is_another(self, manifest: Manifest, there: Object) -> bool:
        """No: what is there is ours, or on its way out. Raises Refused for another's, which would never make room."""
        if not there["metadata"].get("deletionTimestamp"):
            _as_it_is(manifest, there)
        return False

    def _look(self, ref: Ref) -> Object | None:
        """What the cache does not have: somebody else's, or ours without the label by which it is watched.

        No watch would tell the end of what has no label, so the cache does not take it in.
        """
        try:
            return slim(self._api.get(ref))
        except NotFound:
            return None

    def _is_current(self, ref: Ref, wanted: Manifest, there: Object) -> bool:
        version = there["metadata"].get("resourceVersion", "")
        digest = _digest(wanted)
        if self._found.get(ref) == (version, digest):
            return True
        if not is_current(wanted, there):
            return False
        self._found[ref] = (version, digest)
        return True

    def _remember(self, ref: Ref, wanted: Manifest, answer: Object) -> None:
        """What the server made of it counts as applied, even where a webhook changed it: no fights."""
        self._found[ref] = (answer["metadata"].get("resourceVersion", ""), _digest(wanted))

    def _share_replicas(self, ref: Ref, there: Object) -> None:
        """Let the scaler own `replicas` too, so that our next apply, which does not name it, leaves it as it is."""
        if not replicas_are_ours_alone(there, MANAGER):
            return
        item = {
            "apiVersion": RESOURCES[ref.kind].api_version,
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "spec": {"replicas": replicas_of(there)},
        }
        try:
            answer = self._keep(self._api.apply(item, SCALER, force=False))
        except Conflict:
            # Somebody scaled it since that look, and so owns the number: all that is needed.
            return
        found = self._found.get(ref)
        if found is not None:
            self._found[ref] = (answer["metadata"].get("resourceVersion", ""), found[1])

    def _keep(self, answer: Object, *, anew: bool = False) -> Object:
        kept = slim(answer)
        self._store.put(kept, anew=anew)
        return kept


def belongs_to(item: Mapping[str, Any], uid: str) -> bool:
    """Whether the object's controller is the one with this uid."""
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or ())


def taken(there: Mapping[str, Any]) -> Refused:
    """What to raise of an object under our name that is another's: it says whose."""
    owners = there["metadata"].get("ownerReferences") or ()
    holder = next((owner for owner in owners if owner.get("controller")), None)
    who = "somebody else" if holder is None else f"{holder.get('kind')} {holder.get('name')}"
    return Refused(
        f"{there['kind']} {there['metadata']['name']} exists and belongs to {who}: it is left as it is, so another "
        "name is needed"
    )


def _as_it_is(manifest: Manifest, there: Object) -> Manifest:
    """The manifest for what is there: a number of replicas is named at creation alone. Raises Refused for another's."""
    ours = manifest["metadata"].get("ownerReferences") or ()
    is_held = any(owner.get("controller") for owner in there["metadata"].get("ownerReferences") or ())
    # What lost its owner (deleted with --cascade=orphan) and still carries our labels is taken back.
    is_leftover = not is_held and owner_of(there) == owner_of(manifest)
    if ours and not is_leftover and not belongs_to(there, ours[0]["uid"]):
        raise taken(there)
    if manifest["kind"] != "Deployment" or "replicas" not in manifest.get("spec", {}):
        return manifest
    return {**manifest, "spec": {key: value for key, value in manifest["spec"].items() if key != "replicas"}}


def _digest(wanted: Manifest) -> str:
    return str(wanted["metadata"]["annotations"][APPLIED])
