"""What a service refuses to start with, saying why and what to set. Knows no service.

| listens on | needs |
|---|---|
| loopback | nothing |
| elsewhere | keys and TLS, or client certificates, or server.allow_unauthenticated |
| elsewhere, keys without TLS | access.allow_plaintext: a mesh encrypts |
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from services.common.access.keys_file import check_unreadable, read_keys
from services.common.access.tls import read_material
from services.common.errors import ConfigError
from services.common.spec.service import ServiceSpec


def check_access(spec: ServiceSpec, *hosts: str) -> None:
    """ConfigError where the service would be open to others without anybody having asked for that.

    hosts: where it listens beside server.host, for example with HTTP.
    """
    if spec.tls is not None:
        read_material(spec.tls)
    if spec.access.keys_file is not None:
        _check_keys(spec, spec.access.keys_file)
    for host in (spec.server.host, *hosts):
        if not is_loopback(host):
            _check_open_host(spec, host)


def _check_keys(spec: ServiceSpec, path: Path) -> None:
    keys = read_keys(path)
    if keys.keys:
        check_unreadable(path, "hashes of the keys")
    if not keys.keys and not keys.certificates:
        raise ConfigError(
            f"{path}: there is no key in it, so nobody could call; "
            f"python -m services.common.access new NAME --file {path} makes one"
        )
    if keys.certificates and (spec.tls is None or spec.tls.client_ca is None):
        raise ConfigError(f"{path}: it names client certificates, which need tls.client_ca")
    if spec.server.allow_unauthenticated:
        raise ConfigError(
            "server.allow_unauthenticated and access.keys_file exclude each other: with keys, every caller needs one"
        )


def _check_open_host(spec: ServiceSpec, host: str) -> None:
    certificates = spec.tls is not None and spec.tls.client_ca is not None
    keys = spec.access.keys_file is not None
    if not (keys or certificates or spec.server.allow_unauthenticated):
        raise ConfigError(
            f"host {host} listens beyond loopback without access control; "
            "set access.keys_file and [tls], or server.allow_unauthenticated = true to accept that"
        )
    if keys and spec.tls is None and not spec.access.allow_plaintext:
        raise ConfigError(
            f"host {host} listens beyond loopback without TLS: API keys would travel in the clear; "
            "set [tls], or access.allow_plaintext = true where something else encrypts"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
