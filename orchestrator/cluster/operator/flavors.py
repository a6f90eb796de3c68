"""Where Kueue wants pods to be: the node labels of the flavors that it assigned. Knows no run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.view import assigned_flavors
from services.common.errors import Forbidden, NotFound

KEEP_SECONDS = 300.0
"""A flavor is read again after so long: an administrator changes one now and then."""


class Flavors:
    """Read when they are needed: there are few, and they hardly change."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._known: dict[str, tuple[float, Mapping[str, str]]] = {}
        self._unread: dict[str, str] = {}

    def node_labels(self, workload: Object | None) -> dict[str, dict[str, str]]:
        """Per service, the labels of all flavors of its pods."""
        found: dict[str, dict[str, str]] = {}
        for service, flavors in assigned_flavors(workload).items():
            labels = {key: value for name in flavors for key, value in self._labels(name).items()}
            if labels:
                found[service] = labels
        return found

    def unread(self, workload: Object | None) -> str:
        """Which of its flavors may not be read or are not there, in the server's words; empty: none."""
        names = {name for flavors in assigned_flavors(workload).values() for name in flavors}
        return "; ".join(sorted(self._unread[name] for name in names if name in self._unread))

    def _labels(self, name: str) -> Mapping[str, str]:
        now = self._clock()
        at, labels = self._known.get(name, (now - KEEP_SECONDS, {}))
        if now - at >= KEEP_SECONDS:
            labels = self._read(name, labels)
            self._known[name] = (now, labels)
        return labels

    def _read(self, name: str, before: Mapping[str, str]) -> Mapping[str, str]:
        """Its labels; those that it had where it cannot be read now, so that no pod is rolled for that."""
        self._unread.pop(name, None)
        try:
            item = self._api.get(Ref("ResourceFlavor", "", name))
        except (NotFound, Forbidden) as error:
            self._unread[name] = " ".join(str(error).split())
            return before
        labels: Mapping[str, str] = (item.get("spec") or {}).get("nodeLabels") or {}
        return labels
