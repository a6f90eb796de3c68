"""A development authority and a certificate for each service: `trimtab certs`. Owns their files; knows no service.

    OUT/ca.pem, ca.key       made once, kept from call to call, so that certificates can be renewed under it
    OUT/<name>.pem, .key     a certificate that serves and calls alike; its common name is who calls

For clusters in earnest an issuer such as cert-manager does this; what services read is the same.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.local.layout import write_private
from services.common.errors import ConfigError

AUTHORITY_DAYS = 3650
_EARLY = dt.timedelta(minutes=5)
"""Clocks of two machines may differ by so much."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def authority(folder: Path) -> tuple[Authority, bool]:
    """The folder's authority and whether it was made now. Raises ConfigError for files that are none."""
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() != key.exists():
        missing = key if certificate.exists() else certificate
        raise ConfigError(f"{missing} is missing: an authority is both files; remove the other for a new one")
    if certificate.exists():
        return _read(certificate, key), False
    folder.mkdir(parents=True, exist_ok=True)
    made = _new_authority()
    write_private(key, _key_pem(made.key))
    write_private(certificate, _pem(made.certificate))
    return made, True


def issue(signer: Authority, folder: Path, name: str, hosts: Sequence[str], *, days: int) -> None:
    """Write a certificate of this common name, for itself, these hosts and loopback, over an earlier one."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _begun(name, signer.certificate.subject, key, days)
    names = dict.fromkeys([name, "localhost", "127.0.0.1", "::1", *hosts])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False
        )
        .sign(signer.key, hashes.SHA256())
    )
    # The key first: a reader of both sees a pair that does not fit for a moment, and keeps the old one.
    write_private(folder / f"{name}.key", _key_pem(key))
    write_private(folder / f"{name}.pem", _pem(certificate))


def _new_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trimtab development authority")])
    certificate = (
        _begun("trimtab development authority", subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_SIGNS, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _begun(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _read(certificate: Path, key: Path) -> Authority:
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        public = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{certificate.parent}: no authority can be read there: {error}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or public.public_key() != private.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}")
    return Authority(public, private)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
