"""What every service's configuration has: where it listens, its queue, its model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from services.common.spec.base import Spec
from services.common.spec.tracing import TracingSpec

Dtype = Literal["auto", "float32", "bfloat16"]


class ServerSpec(Spec):
    """Where a service listens and how much it accepts."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    health_port: int = Field(0, ge=0, le=65535, description="Plaintext gRPC health port; 0 takes a free one.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0 takes a free one.")
    http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="HTTP port of services that have one; 0 takes a free one; absent: none.",
    )
    max_message_mib: int = Field(64, ge=1, le=1024, description="Largest message accepted, MiB.")
    max_queued_calls: int = Field(
        256, ge=1, description="Calls waiting beyond this are refused with RetryInfo."
    )
    max_connection_age_seconds: float = Field(300, gt=0, description="Connections are renewed at this age.")
    default_deadline_seconds: float = Field(600, gt=0, description="For calls that come without a deadline.")
    drain_seconds: float = Field(10, gt=0, description="SIGTERM to exit, at most.")
    drain_file: Path | None = Field(
        None, description="While this file is not empty: no new work, not ready; see drain_mark.py."
    )
    allow_unauthenticated: bool = Field(False, description="Listen beyond loopback without access control.")


FABRIC_AND_TLS = "weights.fabric sends weights in the clear: expected none beside [tls]"


class TlsSpec(Spec):
    """[tls]: certificates of the main port and of HTTP, in PEM; read anew when the files change."""

    certificate: Path = Field(description="The server's certificate, and those between it and its authority.")
    private_key: Path = Field(description="Its key, without a password, for the owner's eyes alone.")
    client_ca: Path | None = Field(None, description="Authorities of clients: every client then needs one.")


class AccessSpec(Spec):
    """[access]: who may call. See services/common/access/README.md."""

    keys_file: Path | None = Field(None, description="API keys, hashed; read anew when the file changes.")
    allow_plaintext: bool = Field(
        False, description="Take keys beyond loopback without TLS: something else encrypts."
    )


class QueueSpec(Spec):
    """The stage queue that a worker reads. Without it a service answers gRPC alone."""

    url: SecretStr = Field(description="redis://, rediss:// (TLS) or unix:// URL of the server.")
    run_uid: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")
    stage: str = Field("", max_length=128, description="The stage to work on; empty: the service's own name.")
    batch_groups: int = Field(32, ge=1, le=1024, description="Groups taken at once.")
    lease_seconds: float = Field(5, gt=0, description="A silent owner loses its entries after this long.")
    renew_seconds: float = Field(
        1.25, gt=0, description="How often a lease is renewed; at most half of lease_seconds."
    )
    attempt_limit: int = Field(3, ge=1, le=100, description="Attempts before a group is marked failed.")
    ca_file: Path | None = Field(
        None, description="Authorities of a rediss:// server, PEM; absent: the system's."
    )
    certificate_file: Path | None = Field(
        None, description="Our own certificate, PEM, where the server asks for one."
    )
    private_key_file: Path | None = Field(None, description="Its key, without a password.")

    @model_validator(mode="after")
    def _fits(self) -> QueueSpec:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("expected certificate_file and private_key_file together")
        # Else work that takes longer than a lease is claimed by others, and fails after so many attempts.
        if self.renew_seconds > self.lease_seconds / 2:
            raise ValueError(
                f"expected renew_seconds of at most half of lease_seconds = {self.lease_seconds:g}, "
                f"got {self.renew_seconds:g}"
            )
        return self


class ModelSpec(Spec):
    """A model to load: a local folder in Hugging Face form, a .gguf file, or a hub id."""

    path: str = Field(min_length=1, description="Local folder, .gguf file, package:<name>, or hub id.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where it is quicker than float32, else that.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, …")
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    revision: str | None = Field(None, description="Hub revision.")


class LogSpec(Spec):
    """Structured logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = Field(True, description="JSON lines; false: for people.")


class ServiceSpec(Spec):
    """The part that all services' configurations share."""

    name: str = Field("", description="This replica's name; empty: host name and process id.")
    server: ServerSpec = ServerSpec()
    tls: TlsSpec | None = None
    access: AccessSpec = AccessSpec()
    queue: QueueSpec | None = None
    log: LogSpec = LogSpec()
    tracing: TracingSpec = TracingSpec()
    endpoints_file: Path | None = Field(None, description="Where the chosen ports are written, as JSON.")
