"""Events (events.k8s.io/v1): why the operator did something, beside the object that it did it to."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import RESOURCES, Ref
from orchestrator.cluster.kinds import Condition
from orchestrator.cluster.operator.elector import MANAGER, micro_time
from services.common.errors import LostOwnership, TrimtabError

NOTE_BYTES = 1000
"""The API takes 1 KiB."""
_log = structlog.get_logger(__name__)


class Recorder:
    """Writes Events. One that cannot be written is logged: it must not keep a run from going on."""

    def __init__(self, api: Api, identity: str) -> None:
        self._api, self._identity = api, identity

    def tell(
        self, about: Mapping[str, Any], action: str, reason: str, note: str, *, warning: bool = False
    ) -> None:
        """One event. `action`: what was done; `reason`: one word why; `note`: for a person."""
        ref, metadata = Ref.of(about), about["metadata"]
        _log.info("event", action=action, reason=reason, note=note)
        regarding = {
            "apiVersion": about["apiVersion"],
            "kind": ref.kind,
            "namespace": ref.namespace,
            "name": ref.name,
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        item = {
            "apiVersion": RESOURCES["Event"].api_version,
            "kind": "Event",
            "metadata": {"name": f"{ref.name}.{uuid.uuid4().hex[:16]}", "namespace": ref.namespace},
            "eventTime": micro_time(datetime.now(UTC)),
            "reportingController": MANAGER,
            "reportingInstance": self._identity[:128],
            "action": action,
            "reason": reason,
            "regarding": regarding,
            "note": " ".join(note.split()).encode()[:NOTE_BYTES].decode(errors="ignore"),
            "type": "Warning" if warning else "Normal",
        }
        try:
            self._api.create(item, MANAGER)
        except LostOwnership:
            raise
        except TrimtabError as error:
            _log.warning("event could not be written", error=str(error))

    def transitions(
        self, about: Mapping[str, Any], before: Sequence[Condition], after: Sequence[Condition]
    ) -> None:
        """An event for each thing that begins, ends or goes wrong."""
        old = {condition.type: condition for condition in before}
        for condition in after:
            was = old.get(condition.type)
            if condition.type not in ("Available", "Degraded", "Finished") or not _turned(was, condition):
                continue
            bad = condition.type == "Degraded" and condition.status == "True"
            bad = bad or condition.reason == "Failed"
            reason = condition.reason if condition.reason != "AsExpected" else "Recovered"
            self.tell(about, "Reconcile", reason, condition.message or condition.reason, warning=bad)


def _turned(was: Condition | None, now: Condition) -> bool:
    if was is None:
        return now.status == "True"
    same = was.status == now.status and (was.reason == now.reason or now.status == "False")
    return not same
