"""Startup, readiness and liveness of a container: asks as a kubelet does, and tells what it heard. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

Object = Mapping[str, Any]
Execute = Callable[[list[str]], Awaitable[tuple[int, str]]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe with its defaults filled in."""

    spec: Object
    delay: float
    period: float
    timeout: float
    successes: int
    failures: int

    @classmethod
    def of(cls, spec: Object) -> Probe:
        """https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/"""
        return cls(
            spec,
            float(spec.get("initialDelaySeconds") or 0),
            float(spec.get("periodSeconds") or 10),
            float(spec.get("timeoutSeconds") or 1),
            int(spec.get("successThreshold") or 1),
            int(spec.get("failureThreshold") or 3),
        )


@dataclass(slots=True)
class Count:
    """Answers in a row, against the thresholds."""

    probe: Probe
    good: int = 0
    bad: int = 0

    def take(self, passed: bool) -> bool | None:
        """True or False once enough answers say so, None before."""
        self.good, self.bad = (self.good + 1, 0) if passed else (0, self.bad + 1)
        if passed:
            return True if self.good >= self.probe.successes else None
        return False if self.bad >= self.probe.failures else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container is asked."""

    address: str
    ports: Mapping[str, int]
    execute: Execute

    def port(self, given: Any) -> int:
        """A number, or the name of one of the container's ports."""
        return self.ports[given] if isinstance(given, str) and not given.isdigit() else int(given)


async def watch(probe: Probe, place: Place, told: Callable[[bool, str], None]) -> None:
    """Ask until cancelled; `told` gets each outcome that the thresholds confirm, and why."""
    count = Count(probe)
    await asyncio.sleep(probe.delay)
    while True:
        why = await ask(probe, place)
        outcome = count.take(why is None)
        if outcome is not None:
            told(outcome, why or "")
        await asyncio.sleep(probe.period)


async def ask(probe: Probe, place: Place) -> str | None:
    """Once: None where it passes, else why not."""
    try:
        return await asyncio.wait_for(_ask(probe.spec, place, probe.timeout), probe.timeout)
    except TimeoutError:
        return f"no answer within {probe.timeout:g} s"
    except (OSError, httpx.HTTPError) as error:
        return str(error) or type(error).__name__
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"


async def _ask(spec: Object, place: Place, seconds: float) -> str | None:
    if "exec" in spec:
        code, output = await place.execute(list(spec["exec"]["command"]))
        return None if code == 0 else f"exit status {code}: {output.strip()}"
    if "tcpSocket" in spec:
        socket = spec["tcpSocket"]
        _, writer = await asyncio.open_connection(
            socket.get("host") or place.address, place.port(socket["port"])
        )
        writer.close()
        return None
    if "httpGet" in spec:
        return await http_get(spec["httpGet"], place, seconds)
    if "grpc" in spec:
        return await _grpc(spec["grpc"], place, seconds)
    return "a probe of an unknown kind"


async def http_get(spec: Object, place: Place, seconds: float) -> str | None:
    """200 to 399 pass. Certificates are not looked at, as kubelets do not."""
    scheme = (spec.get("scheme") or "HTTP").lower()
    url = (
        f"{scheme}://{spec.get('host') or place.address}:{place.port(spec['port'])}{spec.get('path') or '/'}"
    )
    headers = {one["name"]: one["value"] for one in spec.get("httpHeaders") or ()}
    async with httpx.AsyncClient(verify=False, timeout=seconds) as client:  # noqa: S501
        answer = await client.get(url, headers=headers)
    return None if 200 <= answer.status_code < 400 else f"HTTP status {answer.status_code}"


async def _grpc(spec: Object, place: Place, seconds: float) -> str | None:
    async with grpc.aio.insecure_channel(f"{place.address}:{int(spec['port'])}") as channel:
        request = health_pb2.HealthCheckRequest(service=spec.get("service") or "")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
