"""How a service calls another one: whom it trusts, and who it says it is."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from services.common.spec.base import Spec


class ChannelSpec(Spec):
    """TLS and key of a channel. All files are read anew when they change; none of this: plaintext without a key."""

    tls: bool = Field(False, description="Speak TLS, and trust the authorities that gRPC brings.")
    ca_file: Path | None = Field(None, description="Authorities to trust instead, PEM; turns TLS on.")
    certificate_file: Path | None = Field(
        None, description="Our own certificate, PEM, where one is asked for."
    )
    private_key_file: Path | None = Field(None, description="Its key, without a password.")
    key_file: Path | None = Field(None, description="File with our API key there; needs TLS.")
    server_name: str = Field(
        "", max_length=253, description="Name that its certificate must have; empty: the host of its address."
    )

    @model_validator(mode="after")
    def _fits(self) -> ChannelSpec:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("expected certificate_file and private_key_file together")
        secure = self.tls or self.ca_file or self.certificate_file
        if self.key_file is not None and not secure:
            raise ValueError("expected ca_file or tls beside key_file: a key must not travel in the clear")
        if self.server_name and not secure:
            raise ValueError("expected ca_file or tls beside server_name: without TLS nobody looks at it")
        return self
