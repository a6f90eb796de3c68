"""Certificates for tests: an authority of the test's own, and files as a service reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate and its key on disk."""

    certificate: Path
    private_key: Path


class Authority:
    """A certificate authority; `file` is what its clients, or servers, trust."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def server(self, name: str = "server") -> Pair:
        """For 127.0.0.1 and localhost, written over the files of this name."""
        return self._write(name, self._ca.issue_cert("127.0.0.1", "localhost", common_name=name))

    def client(self, common_name: str, name: str = "client") -> Pair:
        """For a client of this common name."""
        return self._write(name, self._ca.issue_cert("client.invalid", common_name=common_name))

    def _write(self, name: str, issued: trustme.LeafCert) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        for path, content in ((pair.private_key, issued.private_key_pem.bytes()), (pair.certificate, chain)):
            aside = path.with_suffix(".part")
            aside.write_bytes(content)
            aside.chmod(0o600)
            aside.replace(path)
        return pair
