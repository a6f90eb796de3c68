"""Reads what a run's supervisor published: who runs, who listens where. Writes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from orchestrator.local.layout import RunLayout
from services.common.errors import ServiceError

_ADDRESSES = ("grpc", "health", "metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """One process, as published."""

    name: str
    phase: str
    pid: int | None
    restarts: int
    message: str = ""
    addresses: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What endpoints.json says, corrected by whether the supervisor lives."""

    run_uid: str
    pid: int | None
    queue_url: str
    services: dict[str, ServiceState]
    tls: bool = False
    """Whether the services speak mTLS, by the run's own certificates."""

    def as_json(self) -> dict[str, Any]:
        """For `-o json`: the queue's password stays out."""
        return {
            "run_uid": self.run_uid,
            "running": self.pid is not None,
            "pid": self.pid,
            "services": {
                name: {
                    "phase": service.phase,
                    "pid": service.pid,
                    "restarts": service.restarts,
                    "message": service.message,
                    **service.addresses,
                }
                for name, service in self.services.items()
            },
        }


def read_state(layout: RunLayout) -> RunState | None:
    """The run's state, None if it never was up. After its supervisor's death nothing of it runs."""
    try:
        published = json.loads(layout.endpoints_file.read_text(encoding="utf-8"))
        return _state(published, layout.supervisor_pid())
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServiceError(f"{layout.endpoints_file} is damaged: {type(error).__name__}: {error}") from None


def _state(published: dict[str, Any], supervisor: int | None) -> RunState:
    pid = supervisor if supervisor == published["pid"] else None
    services = {name: _service(name, values, pid) for name, values in published["services"].items()}
    return RunState(
        run_uid=published["run_uid"],
        pid=pid,
        queue_url=published["queue"],
        services=services,
        tls=bool(published.get("tls")),
    )


def _service(name: str, values: dict[str, Any], supervisor: int | None) -> ServiceState:
    ended = supervisor is None and values["phase"] not in ("failed", "finished")
    return ServiceState(
        name=name,
        phase="stopped" if ended else values["phase"],
        pid=None if supervisor is None else values["pid"],
        restarts=values["restarts"],
        message=values["message"],
        addresses={kind: values[kind] for kind in _ADDRESSES if kind in values},
    )
