"""What a service starts with, and what it refuses to start with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from services.common.access.keys import hash_of, new_key
from services.common.access.safety import check_access
from services.common.errors import ConfigError
from services.common.spec.service import ServiceSpec
from tests.fakes.certificates import Authority, Pair

EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused


@dataclass
class Files:
    """What a configuration can name."""

    folder: Path
    authority: Authority
    pair: Pair
    keys: Path

    def spec(self, host: str = EVERYWHERE, **options: Any) -> ServiceSpec:
        access: dict[str, Any] = {}
        tables: dict[str, Any] = {"server": {"host": host}, "access": access}
        if options.get("keys"):
            access["keys_file"] = self.keys
        if options.get("tls") or options.get("mtls"):
            tables["tls"] = {"certificate": self.pair.certificate, "private_key": self.pair.private_key}
        if options.get("mtls"):
            tables["tls"]["client_ca"] = self.authority.file
        access["allow_plaintext"] = bool(options.get("plaintext"))
        tables["server"]["allow_unauthenticated"] = bool(options.get("open"))
        return ServiceSpec.model_validate(tables)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Files]:
    """Certificates take a moment: made once, copied for each test."""
    source = tmp_path_factory.mktemp("certificates")
    authority = Authority(source)
    pair = authority.server()

    def copy(folder: Path) -> Files:
        certificate, private_key = folder / "server.pem", folder / "server.key"
        certificate.write_bytes(pair.certificate.read_bytes())
        private_key.write_bytes(pair.private_key.read_bytes())
        private_key.chmod(0o600)
        keys = folder / "keys.toml"
        keys.write_text(f'[[keys]]\nname = "a"\nhash = "{hash_of(new_key())}"\n')
        keys.chmod(0o600)
        return Files(folder, authority, Pair(certificate, private_key), keys)

    return copy


@pytest.fixture
def files(made: Callable[[Path], Files], tmp_path: Path) -> Files:
    return made(tmp_path)


SAFE = [
    {"host": "127.0.0.1"},
    {"host": "::1"},
    {"host": "localhost"},
    {"host": "127.0.0.1", "keys": True},
    {"host": "127.0.0.1", "tls": True},
    {"open": True},
    {"open": True, "tls": True},
    {"keys": True, "tls": True},
    {"keys": True, "mtls": True},
    {"mtls": True},
    {"keys": True, "plaintext": True},
]


@pytest.mark.parametrize("options", SAFE, ids=str)
def test_safe_combinations_start(files: Files, options: dict[str, Any]) -> None:
    """Loopback needs nothing; elsewhere keys with TLS, client certificates, or an explicit word."""
    check_access(files.spec(**options))


UNSAFE: list[tuple[dict[str, Any], str]] = [
    ({}, "listens beyond loopback without access control"),
    ({"host": "reward.example"}, "listens beyond loopback without access control"),
    ({"host": "::"}, "listens beyond loopback without access control"),
    ({"tls": True}, "set access.keys_file and \\[tls\\], or server.allow_unauthenticated = true"),
    ({"plaintext": True}, "listens beyond loopback without access control"),
    ({"keys": True}, "keys would travel in the clear; set \\[tls\\], or access.allow_plaintext = true"),
    ({"keys": True, "tls": True, "open": True}, "exclude each other"),
]


@pytest.mark.parametrize(("options", "words"), UNSAFE, ids=str)
def test_unsafe_combinations_are_refused(files: Files, options: dict[str, Any], words: str) -> None:
    """One line says why and what to set."""
    with pytest.raises(ConfigError, match=words) as caught:
        check_access(files.spec(**options))
    assert "\n" not in str(caught.value)


def test_another_listener_is_checked_too(files: Files) -> None:
    """HTTP may listen elsewhere than gRPC."""
    check_access(files.spec("127.0.0.1"), "127.0.0.1")
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0 listens beyond loopback"):
        check_access(files.spec("127.0.0.1"), EVERYWHERE)


def refused(spec: ServiceSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_access(spec)
    assert "\n" not in str(caught.value)


def test_open_files_are_refused(files: Files) -> None:
    """On loopback as well: a private key that others read, a keys file that everybody reads or others write."""
    for mode in (0o604, 0o644, 0o620):
        files.pair.private_key.chmod(mode)
        refused(files.spec("127.0.0.1", tls=True), "server.key: others may read or write the private key")
    files.pair.private_key.chmod(0o440)
    check_access(files.spec("127.0.0.1", tls=True))
    files.keys.chmod(0o644)
    refused(files.spec("127.0.0.1", keys=True), "keys.toml: everybody may read the hashes")
    files.keys.chmod(0o660)
    refused(files.spec("127.0.0.1", keys=True), "keys.toml: others may write it")


def test_names_of_certificates_are_nobodys_secret(files: Files) -> None:
    """A file without keys may be read by everybody, as one of a ConfigMap is; not written to."""
    files.keys.write_text('[[certificates]]\nname = "run-policy"\nscopes = ["weights"]\n')
    files.keys.chmod(0o644)
    check_access(files.spec(keys=True, mtls=True))
    files.keys.chmod(0o666)
    with pytest.raises(ConfigError, match="others may write it"):
        check_access(files.spec(keys=True, mtls=True))


def test_keys_that_let_nobody_in_are_refused(files: Files) -> None:
    """An empty, missing or broken file at the start is a mistake; so are certificates' names without mTLS."""
    files.keys.write_text("")
    refused(files.spec(keys=True, tls=True), "there is no key in it.*services.common.access new NAME")
    files.keys.write_text("[[keys]")
    refused(files.spec(keys=True, tls=True), "valid TOML")
    files.keys.write_text('[[certificates]]\nname = "learner"\n')
    refused(files.spec(keys=True, tls=True), "need tls.client_ca")
    check_access(files.spec(keys=True, mtls=True))
    files.keys.unlink()
    refused(files.spec(keys=True, tls=True), "no such file")


def test_certificates_that_do_not_serve_are_refused(files: Files) -> None:
    """Missing, no PEM, not a pair, or a key with a password: one line that names the file."""
    other = trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    files.pair.private_key.write_bytes(other)
    refused(files.spec(tls=True, keys=True), "expected a certificate and its private key.*mismatch")
    files.pair.private_key.write_text("nothing")
    refused(files.spec(tls=True, keys=True), "expected a certificate and its private key")
    files.pair.private_key.write_bytes(with_password(other))
    refused(files.spec(tls=True, keys=True), "has a password")
    files.pair.certificate.unlink()
    refused(files.spec(tls=True, keys=True), "server.pem: no such file")


def test_a_client_authority_must_be_one(files: Files) -> None:
    """A file without certificates would turn everybody away, or nobody."""
    files.authority = Authority(files.folder, "other")
    files.authority.file.write_text("nothing")
    refused(files.spec(mtls=True), "other.pem: expected certificates in PEM")


def with_password(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
