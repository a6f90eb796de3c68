"""mTLS between the services of a run on this machine: an authority of its own, certificates, who may call whom.

<run>/tls/ca.pem, ca.key            made once; certificates are made anew at each start
<run>/tls/run-<who>.pem, .key       of each service, of the orchestrator (operator), of you (client)
<run>/tls/<service>-callers.toml    see services/common/access
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import mutual_tls
from orchestrator.local.layout import write_private
from orchestrator.local.toml import to_toml
from orchestrator.mutual_tls import CALLERS, CLIENT, WATCHER, OwnFiles, common_name
from services.common.errors import ConfigError
from services.common.spec.channel import ChannelSpec

PREFIX = "run"
DAYS = 30


def make_certificates(folder: Path, hosts: Mapping[str, Sequence[str]], *, days: int) -> bool:
    """A certificate for each name, for these hosts besides; whether the folder's authority was made now.

    Raises ConfigError where cryptography is not installed, or the folder's authority cannot be read.
    """
    try:
        from orchestrator.certificates import authority, issue
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("cryptography"):
            raise
        told = "making certificates needs cryptography: pip install 'trimtab-platform[certs]'"
        raise ConfigError(told) from None
    signer, made = authority(folder)
    for name, more in hosts.items():
        issue(signer, folder, name, more, days=days)
    return made


class RunTls:
    """The files of one run; made when this is."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where cryptography is not installed, or the folder's authority cannot be read."""
        self.folder = folder
        names = [common_name(PREFIX, who) for who in (*CALLERS, WATCHER, CLIENT)]
        make_certificates(folder, dict.fromkeys(names, ()), days=DAYS)
        for role in CALLERS:
            write_private(self._callers(role), to_toml(mutual_tls.callers(role, PREFIX)))

    def tables(self, role: str) -> dict[str, Any]:
        """What is laid over the configuration of a service of this role."""
        files = self._files(role)
        weights: Mapping[str, Any] = (
            {"weights": mutual_tls.reading_weights(files, PREFIX)} if role == "policy" else {}
        )
        return {**mutual_tls.serving(files), **weights}

    def watching(self, role: str) -> ChannelSpec:
        """How the orchestrator calls a service of this role."""
        return watching(self.folder, role)

    def _files(self, role: str) -> OwnFiles:
        return _files(self.folder, role, self._callers(role))

    def _callers(self, role: str) -> Path:
        return self.folder / f"{role}-callers.toml"


def watching(folder: Path, role: str) -> ChannelSpec:
    """How the orchestrator calls a service of this role, by the files that a run has left there."""
    files = _files(folder, WATCHER, folder)
    return ChannelSpec(**mutual_tls.calling(files, PREFIX, role))


def _files(folder: Path, who: str, callers: Path) -> OwnFiles:
    name = common_name(PREFIX, who)
    return OwnFiles(
        certificate=str(folder / f"{name}.pem"),
        private_key=str(folder / f"{name}.key"),
        authority=str(folder / "ca.pem"),
        callers=str(callers),
    )
