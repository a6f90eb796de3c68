"""What a test counts and what it makes go wrong. Knows no Kubernetes beyond verbs and resources."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.wire import Cut

_KEPT = 200_000  # calls; counts go on
WRITES = frozenset(("create", "update", "patch", "delete", "deletecollection"))


@dataclass(frozen=True, slots=True)
class Call:
    """A request: verb (get, list, watch, create, update, patch, delete, deletecollection), resource as
    "deployments.apps" or "deployments.apps/scale", and who it said it was."""

    verb: str
    resource: str
    namespace: str
    name: str
    user_agent: str = ""
    manager: str = ""
    at: float = 0.0


@dataclass(slots=True)
class _Fault:
    verb: str
    resource: str
    left: int
    status: int
    delay: float
    cut: bool
    retry_after: int


class Calls:
    """All requests since the last reset, and faults that await the next ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.log: deque[Call] = deque(maxlen=_KEPT)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._faults: list[_Fault] = []

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self.log.clear()
            self._counts.clear()

    def count(self, verb: str = "", resource: str = "") -> int:
        """How many there were; empty: any."""
        with self._lock:
            return sum(n for (did, what), n in self._counts.items() if _fits(did, what, verb, resource))

    def by_verb(self) -> Counter[tuple[str, str]]:
        """How many of each verb and resource."""
        with self._lock:
            return self._counts.copy()

    @property
    def writes(self) -> list[Call]:
        """Requests that could have changed something."""
        with self._lock:
            return [call for call in self.log if call.verb in WRITES]

    def fail(
        self, times: int, status: int, *, verb: str = "", resource: str = "", retry_after: int = 0
    ) -> None:
        """Answer the next `times` requests with a status; 0: close the connection instead."""
        self._add(_Fault(verb, resource, times, status, 0, status == 0, retry_after))

    def delay(self, times: int, seconds: float, *, verb: str = "", resource: str = "") -> None:
        """Answer the next `times` requests later."""
        self._add(_Fault(verb, resource, times, 0, seconds, False, 0))

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Nothing more goes wrong."""
        with self._lock:
            self._faults = []

    def note(self, call: Call) -> None:
        """Count a request, and let go wrong what shall. ApiError or Cut."""
        with self._lock:
            self.log.append(call)
            self._counts[call.verb, call.resource] += 1
            found = next(
                (
                    each
                    for each in self._faults
                    if each.left and _fits(call.verb, call.resource, each.verb, each.resource)
                ),
                None,
            )
            if found is None:
                return
            found.left -= 1
        if found.delay:
            time.sleep(found.delay)
        elif found.cut:
            raise Cut
        else:
            details = {"retryAfterSeconds": found.retry_after} if found.retry_after else {}
            raise ApiError(
                found.status, _REASONS.get(found.status, "InternalError"), "injected by the test", details
            )


_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 403: "Forbidden", 404: "NotFound",
            401: "Unauthorized", 503: "ServiceUnavailable", 504: "Timeout"}  # fmt: skip


def _fits(did: str, what: str, verb: str, resource: str) -> bool:
    verbs = WRITES if verb == "write" else {verb}
    return (not verb or did in verbs) and (not resource or what == resource)
