"""`trimtab certs`: its flags, and what to do with the files afterwards."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

NAMES = ("policy", "reference", "reward", "learner", "preference", "client")
_TOLD = """\
[tls]                                  # of each service
certificate = "{folder}/<name>.pem"
private_key = "{folder}/<name>.key"
client_ca = "{folder}/ca.pem"

ca_file = "{folder}/ca.pem"            # beside every address that it calls
certificate_file = "{folder}/<name>.pem"
private_key_file = "{folder}/<name>.key"
"""
_FOR_A_RUN = """\
kubectl apply -f {file}

spec:                                  # of TrainingRun {run}
  tls: {{}}
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")
_ISSUER = re.compile(r"((Issuer|ClusterIssuer)/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("certs")(certs)


def certs(
    out: Annotated[Path, typer.Argument(help="Folder of the files.", show_default=False)],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Common name of a certificate; again for more.", show_default=", ".join(NAMES)),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or address that all of them serve under, too.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="How long certificates are valid.")] = 90,
    run: Annotated[
        str,
        typer.Option(help="A TrainingRun: its certificates, and their Secrets as YAML.", show_default=False),
    ] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="The TrainingRun's.")] = "default",
    issuer: Annotated[
        str,
        typer.Option(
            help="With --run: an Issuer of cert-manager, or ClusterIssuer/NAME, makes and renews them.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """A development authority, and a certificate for each service; again: new certificates of the same authority."""
    from services.common.errors import ConfigError

    if run:
        _check_run(run)
    _check_hosts(host or ())
    if run and name:
        raise ConfigError("--name: a run's certificates have their names from --run")
    if issuer and not (run and _ISSUER.fullmatch(issuer)):
        raise ConfigError("--issuer: expected NAME or ClusterIssuer/NAME, beside --run")
    if issuer:
        _asked_of(issuer, out, run, namespace)
    elif run:
        _of_run(out, run, namespace, host or (), days)
    else:
        _of_services(out, tuple(dict.fromkeys(name or NAMES)), host or (), days)


def _check_run(run: str) -> None:
    from orchestrator.cluster.kinds.reward_model import MOST_NAME, NAME_PATTERN
    from services.common.errors import ConfigError

    if len(run) > MOST_NAME or not re.fullmatch(NAME_PATTERN, run):
        raise ConfigError(
            f"--run {run!r}: expected the name of a TrainingRun: a-z, 0-9 and -, at most {MOST_NAME}"
        )


def _check_hosts(hosts: Sequence[str]) -> None:
    from services.common.errors import ConfigError

    for one in hosts:
        try:
            ipaddress.ip_address(one)
        except ValueError:
            if not _HOST.fullmatch(one):
                raise ConfigError(
                    f"--host {one!r}: expected an address or a DNS name in ASCII (xn--… for other letters)"
                ) from None


def _of_services(out: Path, wanted: Sequence[str], host: Sequence[str], days: int) -> None:
    from services.common.errors import ConfigError

    for one in wanted:
        if not _NAME.fullmatch(one) or one == "ca":
            raise ConfigError(
                f"--name {one!r}: expected at most 63 of a-z, A-Z, 0-9, dots and dashes, and not ca"
            )
    made = _make(out, dict.fromkeys(wanted, host), days)
    typer.echo(f"{made} {out / 'ca.pem'}; for {days} days: {', '.join(wanted)}\n")
    typer.echo(_TOLD.format(folder=out), nl=False)


def _of_run(out: Path, run: str, namespace: str, host: Sequence[str], days: int) -> None:
    from orchestrator.cluster.names import RunNames
    from orchestrator.run_certificates import hosts_of, names_of, secret

    of = RunNames(run, namespace)
    names = names_of(of)
    hosts = {name: [*hosts_of(of, who), *host] for who, name in names.items()}
    made = _make(out, hosts, days)
    texts = {
        name: {"tls.crt": f"{name}.pem", "tls.key": f"{name}.key", "ca.crt": "ca.pem"}
        for name in names.values()
    }
    secrets = [
        secret(name, namespace, {key: (out / file).read_text() for key, file in files.items()})
        for name, files in texts.items()
    ]
    file = out / f"{run}-secrets.yaml"
    _write(file, secrets)
    typer.echo(f"{made} {out / 'ca.pem'}; for {days} days: {', '.join(names.values())}\n")
    typer.echo(_FOR_A_RUN.format(file=file, run=run), nl=False)


def _asked_of(issuer: str, out: Path, run: str, namespace: str) -> None:
    from orchestrator.cluster.names import RunNames
    from orchestrator.run_certificates import IssuerRef, certificate, names_of

    kind, _, name = issuer.rpartition("/")
    ref = IssuerRef(name=name, kind=kind or "Issuer")
    out.mkdir(parents=True, exist_ok=True)
    file, names = out / f"{run}-certificates.yaml", RunNames(run, namespace)
    _write(file, [certificate(names, who, ref) for who in names_of(names)])
    typer.echo(f"asked of {ref.kind} {ref.name}: {', '.join(names_of(names).values())}\n")
    typer.echo(_FOR_A_RUN.format(file=file, run=run), nl=False)


def _make(out: Path, hosts: Mapping[str, Sequence[str]], days: int) -> str:
    """Certificates of these names; "made" or "kept", of the authority."""
    from orchestrator.local.run_tls import make_certificates

    return "made" if make_certificates(out, hosts, days=days) else "kept"


def _write(file: Path, manifests: Sequence[dict[str, Any]]) -> None:
    import yaml

    from orchestrator.local.layout import write_private

    write_private(file, yaml.safe_dump_all(manifests, sort_keys=False))
