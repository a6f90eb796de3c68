"""The gate of a service from its configuration, with its books: counted refusals, one line of the log each."""

from __future__ import annotations

import structlog
from prometheus_client import Counter

from services.common.access.gate import Gate, Reason
from services.common.access.keys_file import WatchedKeys
from services.common.spec.service import ServiceSpec

REFUSED = Counter("trimtab_access_refused", "Callers and calls refused at the gate, by reason.", ["reason"])
_log = structlog.get_logger(__name__)


def open_gate(spec: ServiceSpec) -> Gate:
    """The gate that the configuration asks for; open to everybody where it asks for none."""
    keys = None if spec.access.keys_file is None else WatchedKeys(spec.access.keys_file)
    return Gate(
        None if keys is None else keys.table,
        certificates=spec.tls is not None and spec.tls.client_ca is not None,
        bookkeeper=_write_down,
    )


def _write_down(reason: Reason, name: str) -> None:
    REFUSED.labels(reason).inc()
    _log.warning("access refused", reason=reason, caller=name)
