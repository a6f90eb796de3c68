"""Where callers put their key, and where TLS puts their name. Knows no key and no gate."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"


def presented_key(authorization: str | None, api_key: str | None) -> str | None:
    """The key in the header `authorization: Bearer …`, else in `x-api-key`; None where there is neither.

    Basic is read too, the key as its password: trainers that know nothing but a URL can send one,
    http://any:tt_…@host:port/get_reward.
    """
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        return _password(value.strip()) or None
    return (api_key or "").strip() or None


def _password(encoded: str) -> str:
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return password or user


def key_in_metadata(metadata: Iterable[tuple[str, Any]] | None) -> str | None:
    """The key in a gRPC call's metadata."""
    found = {key: value for key, value in metadata or () if key in (AUTHORIZATION, API_KEY)}
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    return presented_key(texts.get(AUTHORIZATION), texts.get(API_KEY))


def name_in_auth_context(context: Mapping[str, Iterable[bytes]]) -> str | None:
    """The common name of the verified client certificate of a gRPC call; None without one."""
    for name in context.get("x509_common_name", ()):
        return name.decode(errors="replace") or None
    return None


def name_in_certificate(certificate: Mapping[str, Any] | None) -> str | None:
    """The same of what ssl's getpeercert() gives, for HTTP."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value) or None
    return None
