"""Holds the Lease, or waits for it. What is decided is in control/election.py; this asks and writes.

Decision: a replica that loses the lease goes on as a candidate with its caches warm, and writes nothing: the gate of
its Api refuses from that moment. Rejected: to end the process, which costs every run a list of everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from orchestrator.cluster.client.api import REQUEST_SECONDS, Api
from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.election import Election, LeaseRecord, Timing, Wish
from orchestrator.cluster.control.resources import RESOURCES, Object, Ref
from orchestrator.cluster.operator.metrics import LEADER
from services.common.errors import LostOwnership, NotFound, TrimtabError

MANAGER = "trimtab-operator"
_log = structlog.get_logger(__name__)


class Elector:
    """One candidate for one Lease. `api` has no gate: whoever waits must be able to take it."""

    def __init__(
        self,
        api: Api,
        lease: Ref,
        identity: str,
        *,
        timing: Timing | None = None,
        changed: Callable[[bool], None] = lambda _leads: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._lease, self._clock, self._changed = api, lease, clock, changed
        self._election = Election(identity, timing)
        self._stopping = threading.Event()
        self._told = False
        self._thread: threading.Thread | None = None

    def leads(self) -> bool:
        """Whether this replica may write now."""
        return self._election.leads(self._clock())

    def check(self) -> None:
        """The gate of an Api. Raises LostOwnership."""
        if not self.leads():
            raise LostOwnership("this replica does not lead")

    def start(self) -> threading.Thread:
        """On a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)
        self._thread.start()
        return self._thread

    def renew_no_more(self) -> None:
        """Let the thread end; what is led is led until the last renewal runs out."""
        self._stopping.set()

    def stop(self) -> None:
        """Give the Lease back, so that the other replica need not wait for its end."""
        self._stopping.set()
        if self._thread is not None:
            # A renewal under way would make our own last write a conflict.
            self._thread.join(REQUEST_SECONDS)
        held, led = self._election.seen, self.leads()
        self._election.lost()
        self._tell()
        if not led or held is None:
            return
        try:
            self._api.replace(self._item(held, holder="", duration=1), MANAGER)
            _log.info("lease given back")
        except TrimtabError as error:
            _log.warning("lease could not be given back: it ends by itself", error=str(error))

    def once(self) -> None:
        """Look at the Lease and do what is to be done."""
        sent = self._clock()
        try:
            record: LeaseRecord | None = _record(self._api.get(self._lease))
        except NotFound:
            record = None
        wish = self._election.wish(record, self._clock())
        if wish is Wish.WAIT:
            return
        item = self._item(
            record, holder=self._election.identity, duration=self._election.timing.lease_seconds
        )
        try:
            written = (
                self._api.create(item, MANAGER) if wish is Wish.CREATE else self._api.replace(item, MANAGER)
            )
        except Conflict:
            self._election.lost()
            return
        self._election.wish(_record(written), self._clock())
        self._election.renewed(sent)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.once()
            except TrimtabError as error:
                _log.warning("cannot reach the lease", error=str(error))
            self._tell()
            self._stopping.wait(self._election.timing.retry_seconds)

    def _tell(self) -> None:
        leads = self.leads()
        LEADER.set(leads)
        if leads != self._told:
            self._told = leads
            _log.info("leading" if leads else "not leading any more", lease=self._lease.name)
            self._changed(leads)

    def _item(self, before: LeaseRecord | None, *, holder: str, duration: float) -> Object:
        now = micro_time(datetime.now(UTC))
        same = before is not None and before.holder == holder
        spec: dict[str, Any] = {
            "leaseDurationSeconds": max(1, round(duration)),
            "renewTime": now,
            "acquireTime": before.acquired if before is not None and same and before.acquired else now,
            "leaseTransitions": 0 if before is None else before.transitions + (not same and bool(holder)),
        }
        if holder:
            spec["holderIdentity"] = holder
        metadata: dict[str, Any] = {"name": self._lease.name, "namespace": self._lease.namespace}
        if before is not None:
            metadata["resourceVersion"] = before.resource_version
        return {
            "apiVersion": RESOURCES["Lease"].api_version,
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }


def micro_time(moment: datetime) -> str:
    """As metav1.MicroTime is written."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _record(item: Object) -> LeaseRecord:
    spec = item.get("spec") or {}
    return LeaseRecord(
        holder=spec.get("holderIdentity") or "",
        duration_seconds=float(spec.get("leaseDurationSeconds") or 15),
        renewed=str(spec.get("renewTime") or ""),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
        resource_version=item["metadata"].get("resourceVersion", ""),
    )
