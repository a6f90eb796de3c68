"""`trimtab certs` as its user calls it, and services that speak by what it wrote."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from services.common.errors import ConfigError
from services.common.server import serving
from services.common.spec.service import ServiceSpec, TlsSpec
from tests.integration.access.guarded import App, score
from trimtab import AsyncRewardClient
from trimtab.clients.errors import PermissionDeniedError, UnavailableError


def made(folder: Path, *flags: str) -> str:
    result = CliRunner().invoke(app, ["certs", str(folder), *flags])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def files(folder: Path, name: str) -> dict[str, Path]:
    return {"certificate_file": folder / f"{name}.pem", "private_key_file": folder / f"{name}.key"}


def served(folder: Path) -> ServiceSpec:
    tls = TlsSpec(
        certificate=folder / "reward.pem", private_key=folder / "reward.key", client_ca=folder / "ca.pem"
    )
    return ServiceSpec(tls=tls)


async def test_services_speak_mtls_by_them(tmp_path: Path) -> None:
    """A certificate's common name is who calls; no certificate, or another authority's, stays outside."""
    folder, other = tmp_path / "certs", tmp_path / "other"
    assert "reward" in made(folder)
    made(other, "--name", "policy")
    ca = folder / "ca.pem"
    async with serving(served(folder), App()) as endpoints:
        assert await score(endpoints.grpc, ca_file=ca, **files(folder, "policy")) == "policy"
        for access in ({}, files(other, "policy")):
            with pytest.raises(UnavailableError):
                await score(endpoints.grpc, ca_file=ca, **access)
        async with AsyncRewardClient(endpoints.grpc, ca_file=ca, **files(folder, "policy")) as client:
            with pytest.raises(PermissionDeniedError, match="policy lacks the scope admin"):
                await client.unload_model("hh")


async def test_renewed_under_the_same_authority(tmp_path: Path) -> None:
    """Again: new certificates, the old authority, and a client that trusts it goes on without a restart."""
    made(tmp_path, "--name", "reward", "--name", "client")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.key")} == {0o600}
    async with serving(served(tmp_path), App()) as endpoints:
        assert "kept" in made(tmp_path, "--name", "reward", "--name", "client")
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca.key"}
        caller = await score(endpoints.grpc, ca_file=tmp_path / "ca.pem", **files(tmp_path, "client"))
        assert caller == "client"


def test_hosts_are_in_them(tmp_path: Path) -> None:
    """Names and addresses that were asked for, its own name and loopback."""
    from cryptography import x509

    made(tmp_path, "--name", "reward", "--host", "reward.example.com", "--host", "10.1.2.3", "--days", "7")
    certificate = x509.load_pem_x509_certificate((tmp_path / "reward.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"reward", "localhost", "reward.example.com"}
    assert {str(one) for one in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.1.2.3"}
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 7


def test_half_an_authority_is_refused(tmp_path: Path) -> None:
    """One line says what is missing; nothing is written. So for a key of another authority, and a name that is none."""
    made(tmp_path, "--name", "a")
    key = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key is missing"):
        made(tmp_path)
    made(tmp_path / "other", "--name", "a")
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        made(tmp_path)
    (tmp_path / "ca.key").write_bytes(key)
    for name in ("ca", "../a", "", "naïve", "a" * 64):
        with pytest.raises(ConfigError, match="--name"):
            made(tmp_path, "--name", name)
    for host in ("bücher.example", "a b", "", "https://a"):
        with pytest.raises(ConfigError, match="--host"):
            made(tmp_path / "none", "--host", host)
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "policy.pem").exists()


WHO = ("policy", "reference", "reward", "learner", "redis", "operator", "client")


def manifests(path: Path) -> dict[str, dict[str, Any]]:
    """By name; nobody else may read the file."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return {one["metadata"]["name"]: one for one in yaml.safe_load_all(path.read_text())}


async def test_secrets_of_a_run_open_its_services_doors(tmp_path: Path) -> None:
    """One Secret for each service, named as `spec.tls` looks for them; what is in them is what services speak by."""
    told = made(tmp_path, "--run", "helpful", "--namespace", "rlhf")
    assert f"kubectl apply -f {tmp_path / 'helpful-secrets.yaml'}" in told
    assert "tls: {}" in told
    secrets = manifests(tmp_path / "helpful-secrets.yaml")
    assert set(secrets) == {f"helpful-tls-{who}" for who in WHO}
    assert {one["type"] for one in secrets.values()} == {"kubernetes.io/tls"}
    assert {one["metadata"]["namespace"] for one in secrets.values()} == {"rlhf"}
    for name, one in secrets.items():
        for key, text in one["stringData"].items():
            path = tmp_path / name / key
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o600)
    own, caller = tmp_path / "helpful-tls-reward", tmp_path / "helpful-tls-client"
    tls = TlsSpec(certificate=own / "tls.crt", private_key=own / "tls.key", client_ca=own / "ca.crt")
    pair = {"certificate_file": caller / "tls.crt", "private_key_file": caller / "tls.key"}
    async with serving(ServiceSpec(tls=tls), App()) as endpoints:
        assert await score(endpoints.grpc, ca_file=caller / "ca.crt", **pair) == "helpful-tls-client"
    assert "ca.key" not in (tmp_path / "helpful-secrets.yaml").read_text()


def test_cert_manager_is_asked_for_the_same(tmp_path: Path) -> None:
    """The same names, no key of ours; the queue server's has the host that its clients look for."""
    told = made(tmp_path, "--run", "helpful", "-n", "rlhf", "--issuer", "ClusterIssuer/company")
    assert "asked of ClusterIssuer company" in told
    found = manifests(tmp_path / "helpful-certificates.yaml")
    assert set(found) == {f"helpful-tls-{who}" for who in WHO}
    for name, one in found.items():
        spec = one["spec"]
        assert (spec["secretName"], spec["commonName"], spec["dnsNames"][0]) == (name, name, name)
        assert {"server auth", "client auth"} <= set(spec["usages"])
        assert spec["issuerRef"] == {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert found["helpful-tls-redis"]["spec"]["dnsNames"][1:] == ["helpful-redis.rlhf.svc"]
    assert [path.name for path in tmp_path.iterdir()] == ["helpful-certificates.yaml"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--run", "Not_A_Name"), "--run"),
        (("--run", "a" * 39), "--run"),
        (("--run", "a", "--name", "b"), "--name"),
        (("--issuer", "company"), "--issuer"),
        (("--run", "a", "--issuer", "Other/company"), "--issuer"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, flags: tuple[str, ...], told: str) -> None:
    """One line names the flag; nothing is written."""
    with pytest.raises(ConfigError, match=told):
        made(tmp_path / "certs", *flags)
    assert not (tmp_path / "certs").exists()
