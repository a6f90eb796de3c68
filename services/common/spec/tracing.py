"""The [tracing] table. Knows no OpenTelemetry: services/common/tracing.py does."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from services.common.spec.base import Spec

_SCHEMES = ("http", "https", "grpc", "grpcs")


def _endpoint(value: str) -> str:
    if value and (urlsplit(value).scheme not in _SCHEMES or not urlsplit(value).netloc):
        raise ValueError("expected http(s)://host:4318 or grpc(s)://host:4317")
    return value


class TracingSpec(Spec):
    """OpenTelemetry traces. Off without an endpoint; needs the extra [tracing]."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "", description="Collector that takes OTLP: http(s)://host:4318 or grpc(s)://host:4317. Empty: off."
    )
    share: float = Field(
        1.0, ge=0, le=1, description="Of the traces that begin here; a caller's own decision is kept."
    )
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Sent along, for example a key.")
    timeout_seconds: float = Field(10.0, gt=0, description="For one export.")
    max_queued_spans: int = Field(8192, ge=512, description="Spans that wait for export; more are dropped.")
