"""Writes a status when it differs: at once where it says something, after a while where only figures move."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.status import only_figures
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.names import MANAGER
from orchestrator.cluster.operator.reflector import slim


class StatusWriter:
    """Of all objects. `seconds`: between two writes for figures alone."""

    def __init__(
        self, api: Api, store: Store, *, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._store, self._seconds, self._clock = api, store, seconds, clock
        self._written: dict[Ref, float] = {}

    def write(self, item: Object, new: dict[str, Any], old: dict[str, Any]) -> float | None:
        """Write `new` over `old`; seconds until it may be written, where it has to wait."""
        if new == old:
            return None
        ref, now = Ref.of(item), self._clock()
        if old and only_figures(new, old):
            left = self._written.get(ref, now - self._seconds) + self._seconds - now
            if left > 0:
                return left
        self._written[ref] = now
        manifest = {
            "apiVersion": item["apiVersion"],
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "status": new,
        }
        self._store.put(slim(self._api.apply(manifest, MANAGER, "status")))
        return None

    def forget(self, ref: Ref) -> None:
        """It is gone."""
        self._written.pop(ref, None)
