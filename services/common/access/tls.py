"""Certificates of a listener, for gRPC and for HTTP, read anew when their files change. Knows no key and no caller.

Connections that stand keep what they began with (server.max_connection_age_seconds ends them); new ones get the
newest files. Files that do not fit together change nothing: in the middle of a rotation that is so for a moment.
"""

from __future__ import annotations

import ssl
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import structlog

from services.common.access.watched import Watched
from services.common.errors import ConfigError
from services.common.spec.service import TlsSpec

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Material:
    """The files of one moment, found to fit together."""

    certificate: bytes
    private_key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration(
            [(self.private_key, self.certificate)], self.client_ca
        )


class TlsFiles:
    """A listener's certificate, key and client authority. Safe to use from several threads.

    ConfigError at once where they cannot be used; see `read_material`.
    """

    def __init__(self, spec: TlsSpec) -> None:
        self._spec = spec
        paths = [path for path in (spec.certificate, spec.private_key, spec.client_ca) if path]
        self._watched = Watched(*paths)
        self._lock = threading.Lock()
        self._material = read_material(spec)

    @property
    def asks_for_certificates(self) -> bool:
        """Whether a client without a certificate is turned away."""
        return self._spec.client_ca is not None

    def material(self) -> Material:
        """What the files hold now; what they held before where that is of no use."""
        with self._lock:
            if self._watched.changed():
                self._reread()
            return self._material

    def _reread(self) -> None:
        try:
            self._material = read_material(self._spec)
        except ConfigError as error:
            _log.error("certificate refused, the old one stays", reason=str(error))
        else:
            _log.info("certificate read anew", certificate=str(self._spec.certificate))

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For add_secure_port. gRPC asks at every handshake whether there is something new."""
        given = self.material()

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            material = self.material()
            if material is given:
                return None
            given = material
            return material.configuration()

        return grpc.dynamic_ssl_server_credentials(
            given.configuration(),
            cast("Any", newest),  # None means nothing new, which its types do not say
            require_client_authentication=self.asks_for_certificates,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """For asyncio and uvicorn. It hands every handshake over to the newest files."""
        context = _context(self._spec)

        def hand_over(
            connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext
        ) -> None:
            connection.context = self.material().context

        context.sni_callback = hand_over  # called for clients that name no server, too
        return context


def read_material(spec: TlsSpec) -> Material:
    """The files, checked: readable, the key private and without a password, certificate and key a pair.

    Raises ConfigError in one line that names the file and what to do.
    """
    certificate, private_key = _read(spec.certificate), _read(spec.private_key)
    client_ca = None if spec.client_ca is None else _read(spec.client_ca)
    if spec.private_key.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"{spec.private_key}: others may read or write the private key; chmod 600 it "
            "(on Kubernetes: defaultMode 0440)"
        )
    return Material(certificate, private_key, client_ca, _context(spec))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def _context(spec: TlsSpec) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(spec.certificate, spec.private_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"{spec.certificate} and {spec.private_key}: expected a certificate and its private key "
            f"without a password, both in PEM: {reason.replace('_', ' ').lower()}"
        ) from None
    if spec.client_ca is not None:
        try:
            context.load_verify_locations(cafile=spec.client_ca)
        except (OSError, ValueError):
            raise ConfigError(f"{spec.client_ca}: expected certificates in PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    raise ValueError("the private key has a password")
