"""The files of a TLS connection to the queue server. Knows no connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.errors import ConfigError
from services.common.spec.service import QueueSpec


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom a client trusts (none: the system's authorities) and who it says it is (none: nobody), PEM."""

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    @classmethod
    def of(cls, spec: QueueSpec) -> TlsFiles:
        """Those of a [queue] table."""
        return cls(spec.ca_file, spec.certificate_file, spec.private_key_file)

    def arguments(self, url: str) -> dict[str, Any]:
        """What redis-py is told beside the URL. Raises ConfigError for a file that cannot be read, or without TLS."""
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
        arguments = {
            "ssl_ca_certs": self.ca,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.private_key,
        }
        return {name: str(path) for name, path in arguments.items() if path is not None}
