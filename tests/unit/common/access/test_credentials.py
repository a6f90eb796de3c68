"""Where a key is looked for in a request."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from services.common.access.credentials import (
    key_in_metadata,
    name_in_auth_context,
    name_in_certificate,
    presented_key,
)
from services.common.access.scopes import scope_of

BASIC = "Basic " + base64.b64encode(b"any:tt_1").decode()

HEADERS = [
    ("Bearer tt_1", None, "tt_1"),
    ("bearer  tt_1 ", None, "tt_1"),
    ("BEARER tt_1", "tt_2", "tt_1"),
    (None, "tt_2", "tt_2"),
    ("Digest x", " tt_2 ", "tt_2"),
    (BASIC, None, "tt_1"),
    ("Basic " + base64.b64encode(b"tt_1:").decode(), None, "tt_1"),
    ("Basic not base64", None, None),
    ("Basic /////w==", None, None),
    ("Bearer ", None, None),
    ("Bearer", "", None),
    ("", "  ", None),
    (None, None, None),
]


@pytest.mark.parametrize(("authorization", "api_key", "key"), HEADERS)
def test_key_of_headers(authorization: str | None, api_key: str | None, key: str | None) -> None:
    """Bearer goes before x-api-key; a URL's password is a key; anything else is none."""
    assert presented_key(authorization, api_key) == key


def test_key_of_metadata() -> None:
    """gRPC's metadata is read alike; bytes under a text header are no key."""
    assert key_in_metadata([("user-agent", "x"), ("authorization", "Bearer tt_1")]) == "tt_1"
    assert key_in_metadata([("x-api-key", "tt_2")]) == "tt_2"
    assert key_in_metadata([("x-api-key", b"tt_2")]) is None
    assert key_in_metadata(None) is None


def test_name_of_certificates() -> None:
    """The common name, as gRPC and as ssl tell it; none without a certificate."""
    assert name_in_auth_context({"x509_common_name": [b"learner"]}) == "learner"
    assert name_in_auth_context({"transport_security_type": [b"insecure"]}) is None
    subject: dict[str, Any] = {"subject": ((("organizationName", "o"),), (("commonName", "learner"),))}
    assert name_in_certificate(subject) == "learner"
    assert name_in_certificate(None) is None
    assert name_in_certificate({}) is None


def test_scopes_of_methods() -> None:
    """Administration is told by its service's name, reflection is anybody's, the unknown is admin's."""
    assert scope_of("trimtab.reward.v1.RewardService/Score") == "score"
    assert scope_of("trimtab.reward.v1.RewardAdminService/LoadModel") == "admin"
    assert scope_of("trimtab.learner.v1.LearnerService/GetRunStatus") == "status"
    assert scope_of("trimtab.learner.v1.LearnerService/Stop") == "admin"
    assert scope_of("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None
    assert scope_of("somebody.else.v1.Service/Method") == "admin"
