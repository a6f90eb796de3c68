"""Asks a process whether it serves. Knows the health protocol and nothing else of a service."""

from __future__ import annotations

import asyncio
import json
from enum import Enum
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import Unavailable

# Without these a channel that was refused a few times waits up to two minutes before it tries again.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class Health(Enum):
    """What a look at a process told."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    SILENT = "silent"


class Probe(Protocol):
    """One way to look at a process."""

    async def check(self, timeout_seconds: float) -> Health:
        """Never raises; SILENT when there was no answer in time."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class AliveProbe:
    """For programs without a health port: a job serves as long as it runs."""

    async def check(self, timeout_seconds: float) -> Health:  # noqa: ARG002 (the port's signature)
        """Always SERVING; the supervisor asks only while the process runs."""
        return Health.SERVING

    async def close(self) -> None:
        """Nothing is held."""


class GrpcProbe:
    """gRPC health v1 at the `health` address that the process wrote to its endpoints file."""

    def __init__(self, endpoints_file: Path) -> None:
        self._file = endpoints_file
        self._address = ""
        self._channel: grpc.aio.Channel | None = None

    async def check(self, timeout_seconds: float) -> Health:
        """SILENT while there is no endpoints file, too."""
        try:
            endpoints = read_endpoints(self._file)
        except Unavailable:
            return Health.SILENT
        if endpoints is None:
            return Health.SILENT
        channel = await self._connected(endpoints.get("health") or endpoints["grpc"])
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.aio.AioRpcError:
            return Health.SILENT
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return Health.SERVING if serving else Health.NOT_SERVING

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _connected(self, address: str) -> grpc.aio.Channel:
        if self._channel is None or address != self._address:
            await self.close()
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            self._address = address
        return self._channel


class QueueProbe:
    """Redis PING with a password, over a bare socket."""

    def __init__(self, host: str, port: int, password: str | None) -> None:
        self._host, self._port, self._password = host, port, password

    async def check(self, timeout_seconds: float) -> Health:
        """NOT_SERVING while the server loads its append-only file."""
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._ping()
        except (OSError, TimeoutError):
            return Health.SILENT
        if not answer:
            return Health.SILENT
        return Health.SERVING if answer.startswith(b"+PONG") else Health.NOT_SERVING

    async def close(self) -> None:
        """Nothing is held."""

    async def _ping(self) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            if self._password:
                writer.write(f"AUTH {self._password}\r\n".encode())
                if not (await reader.readline()).startswith(b"+"):
                    return b"-refused"
            writer.write(b"PING\r\n")
            return await reader.readline()
        finally:
            writer.close()


def read_endpoints(path: Path) -> dict[str, str] | None:
    """The addresses a service wrote, or None while it has not. Raises Unavailable if it is not JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        endpoints = {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise Unavailable(f"{path} does not hold endpoints: {error}") from error
    return endpoints if "grpc" in endpoints or "health" in endpoints else None
