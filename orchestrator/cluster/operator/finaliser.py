"""The end of a run or reward model: its pods drain, its objects go, then the object itself. Knows no spec.

Owner references would remove everything too, but in no order and with nobody to see that pods are gone. What cannot
end (its node is gone) is removed by force, and what cannot even be removed so holds the object for a bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.attempts import LOST_SECONDS
from orchestrator.cluster.control.pods import moment, pod_view
from orchestrator.cluster.control.resources import PRUNED, Object, Ref
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.kinds.base import GROUP
from orchestrator.cluster.names import MANAGER
from orchestrator.cluster.operator.applier import Applier, belongs_to
from orchestrator.cluster.operator.reflector import slim
from services.common.errors import NotFound

FINALIZER = f"{GROUP}/drain"
LOOK_AGAIN_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
"""Then the object goes, whatever is left of it: owner references take care of that."""
_log = structlog.get_logger(__name__)


class Finaliser:
    """Guards the end of what has our finaliser."""

    def __init__(self, api: Api, store: Store, applier: Applier) -> None:
        self._api, self._store, self._applier = api, store, applier

    def guard(self, item: Object) -> Object:
        """The object with our finaliser, written if it is not there."""
        have = item["metadata"].get("finalizers") or []
        return item if FINALIZER in have else self._write(item, [*have, FINALIZER])

    def end(self, item: Object, now: datetime, last: Callable[[], bool] = lambda: True) -> float | None:
        """One step towards the end; seconds until the next, None when it is over.

        `last` is done when the pods are gone, and again until it says that it is done.
        """
        have = item["metadata"].get("finalizers") or []
        if FINALIZER not in have:
            return None
        uid = item["metadata"].get("uid", "")
        owned = self._store.owned(Ref.of(item))
        self._delete([one for one in owned if one["kind"] in PRUNED and belongs_to(one, uid)])
        left = [
            one for one in self._store.owned(Ref.of(item)) if one["kind"] == "Pod" or belongs_to(one, uid)
        ]
        asked = moment(item["metadata"].get("deletionTimestamp"))
        late = asked is not None and (now - asked).total_seconds() > PATIENCE_SECONDS
        if left and not late:
            self._force(left, now)
            return LOOK_AGAIN_SECONDS
        if not last():
            return LOOK_AGAIN_SECONDS
        self._write(item, [one for one in have if one != FINALIZER])
        _log.info("gone", left=len(left))
        return None

    def _delete(self, items: Sequence[Object]) -> None:
        # The learner first: what its policies still make is of no use to anybody once it is gone.
        for item in sorted(items, key=lambda one: (one["kind"] != "Job", one["kind"] != "Deployment")):
            if not item["metadata"].get("deletionTimestamp"):
                self._applier.delete(item)

    def _force(self, left: Sequence[Object], now: datetime) -> None:
        for item in left:
            if item["kind"] == "Pod" and pod_view(item).overdue_seconds(now) > LOST_SECONDS:
                self._applier.delete(item, force=True)

    def _write(self, item: Mapping[str, Any], finalizers: list[str]) -> Object:
        # With the version, so that nobody else's finaliser is written over.
        patch = {
            "metadata": {"finalizers": finalizers, "resourceVersion": item["metadata"].get("resourceVersion")}
        }
        try:
            answer = slim(self._api.merge(Ref.of(item), patch, MANAGER))
        except NotFound:
            self._store.remove(Ref.of(item), item["metadata"].get("uid", ""))
            return dict(item)
        if finalizers or not item["metadata"].get("deletionTimestamp"):
            self._store.put(answer)
        return answer
