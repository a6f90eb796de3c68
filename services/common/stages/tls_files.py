"""Whom a TLS connection to the queue server trusts, and who it is. Knows no connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import ConfigError
from services.common.spec.service import QueueSpec


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom a client trusts (none: the system's authorities) and who it says it is (none: nobody), PEM.

    authorities: instead of `ca`, the text itself.
    """

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    authorities: str = ""

    @classmethod
    def of(cls, spec: QueueSpec) -> TlsFiles:
        """Those of a [queue] table."""
        return cls(spec.ca_file, spec.certificate_file, spec.private_key_file)

    def check(self, url: str) -> None:
        """Raises ConfigError for a file that cannot be read, or beside a URL without TLS."""
        if self.authorities and not url.startswith("rediss://"):
            raise ConfigError("queue: authorities are given, so expected a rediss:// URL")
        named = {
            "ca_file": self.ca,
            "certificate_file": self.certificate,
            "private_key_file": self.private_key,
        }
        for field, path in named.items():
            if path is None:
                continue
            if not url.startswith("rediss://"):
                raise ConfigError(f"queue.{field}: expected a rediss:// URL beside it")
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"queue.{field}: {path}: {error.strerror}") from None

    def context(self) -> ssl.SSLContext:
        """For one connection, from the files as they are now. A named authority is the only one that is trusted."""
        context = ssl.create_default_context(cafile=self.ca, cadata=self.authorities or None)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.private_key)
        return context

    def __bool__(self) -> bool:
        """Whether any is named."""
        return any((self.ca, self.certificate, self.private_key, self.authorities))
