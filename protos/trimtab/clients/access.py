"""How a client says who it is and whom it trusts: key, certificates, and where a key may travel. Knows no service.

    RewardClient("reward.example:50053", key_file="key", ca_file="ca.pem")

A key goes along with every call as `authorization: Bearer …`. It is read anew when its file changes, is in no
message and in no repr, and is not sent in the clear to another machine unless `allow_plaintext` says so.

Decision: without `key` and `key_file` the environment's TRIMTAB_KEY is the key, as trainers are configured by
their environment; key="" sends none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import grpc

from trimtab.clients.files import Watched

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_VARIABLE = "TRIMTAB_KEY"
PathLike = str | os.PathLike[str]
Metadata = tuple[tuple[str, str], ...]
_SENDABLE = re.compile(r"[\x21-\x7e]+")


class AccessOptions(TypedDict, total=False):
    """What every client takes by keyword.

    key, key_file: the API key, or a file that holds it. ca_file: authorities (PEM) to trust, which turns TLS
    on; `tls` alone trusts gRPC's own. certificate_file, private_key_file: the client's own, for mTLS.
    allow_plaintext: send a key without TLS beyond this machine, where a mesh encrypts.
    """

    key: str | None
    key_file: PathLike | None
    tls: bool
    ca_file: PathLike | None
    certificate_file: PathLike | None
    private_key_file: PathLike | None
    allow_plaintext: bool


class Access:
    """The options of one client, checked against its target. ValueError where they contradict each other."""

    def __init__(
        self,
        *,
        key: str | None = None,
        key_file: PathLike | None = None,
        tls: bool = False,
        ca_file: PathLike | None = None,
        certificate_file: PathLike | None = None,
        private_key_file: PathLike | None = None,
        allow_plaintext: bool = False,
        environment: bool = True,
    ) -> None:
        if key and key_file:
            raise ValueError("key and key_file exclude each other")
        if bool(certificate_file) != bool(private_key_file):
            raise ValueError("certificate_file and private_key_file need each other")
        self.tls = TlsOptions(tls, ca_file, certificate_file, private_key_file)
        self._allow_plaintext = allow_plaintext
        self._key = _key_source(key, key_file, os.environ.get(KEY_VARIABLE, "") if environment else "")

    def metadata(self) -> Metadata:
        """What goes along with a call; the key as its file holds it now."""
        key = self._key() if self._key is not None else ""
        return (("authorization", f"Bearer {key}"),) if key else ()

    def check_target(self, target: str, *, secure: bool) -> None:
        """ValueError where the key would travel to another machine in the clear."""
        if self._key is None or secure or self._allow_plaintext or is_local(target):
            return
        raise ValueError(
            f"the API key would travel to {target} in the clear: give ca_file= or tls=True, or allow_plaintext=True "
            f"where something else encrypts (the key is from key=, key_file= or the environment's {KEY_VARIABLE})"
        )


class TlsOptions:
    """Files for a TLS channel; `wanted` where there is to be one at all."""

    def __init__(
        self,
        tls: bool,
        ca_file: PathLike | None,
        certificate_file: PathLike | None,
        private_key_file: PathLike | None,
    ) -> None:
        named = [ca_file, certificate_file, private_key_file]
        self._files = [None if each is None else Path(each) for each in named]
        self.wanted = tls or any(self._files)

    @property
    def files(self) -> list[Path]:
        """Those that are named. A change of one makes a new channel needed: gRPC reloads none of them."""
        return [each for each in self._files if each is not None]

    def credentials(self) -> grpc.ChannelCredentials:
        """From the files as they are now. OSError where one cannot be read; ValueError where they do not fit."""
        ca_file, certificate_file, private_key_file = self._files
        if certificate_file is not None and private_key_file is not None:
            check_pair(certificate_file, private_key_file)
        return grpc.ssl_channel_credentials(
            root_certificates=_read(ca_file),
            private_key=_read(private_key_file),
            certificate_chain=_read(certificate_file),
        )


def check_pair(certificate_file: Path, private_key_file: Path) -> None:
    """ValueError unless the two files are a certificate and its key without a password, in PEM."""
    import ssl

    def no_password() -> str:
        raise ValueError("the private key has a password")

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(certificate_file, private_key_file, password=no_password)
    except (ssl.SSLError, ValueError):
        raise ValueError(
            f"{certificate_file} and {private_key_file}: expected a certificate and its private key without a "
            "password, both in PEM"
        ) from None


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def access_of(target: object, options: AccessOptions) -> Access:
    """The options of a client of this target. ValueError where they contradict each other.

    A channel of the caller's own has its credentials already: it may be plaintext to anywhere, so that the
    environment's key does not go along.
    """
    own = not isinstance(target, str)
    access = Access(**options, environment=not own)
    if own and access.tls.wanted:
        raise ValueError(
            "a channel of your own has its credentials: tls, ca_file, certificate_file exclude it"
        )
    return access


def _key_source(key: str | None, key_file: PathLike | None, ambient: str) -> Callable[[], str] | None:
    """A function that gives the key as of now; None where there is none."""
    if key_file is not None:
        return KeyFile(Path(key_file)).key
    source = f"the environment's {KEY_VARIABLE}" if key is None else "key"
    fixed = (ambient if key is None else key).strip()
    if not fixed:
        return None
    check_key(fixed, source)
    return lambda: fixed


class KeyFile:
    """The key in a file, as it is now; while the file is gone or empty, the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = Watched([path])
        self._key = self._read()

    def key(self) -> str:
        """Looks at the file's times and size, reads it only where they changed."""
        if self._watched.changed():
            # In the middle of a rotation it may be gone; it is looked at again when it changes again.
            with contextlib.suppress(OSError, ValueError):
                self._key = self._read()
        return self._key

    def _read(self) -> str:
        return check_key(self._path.read_text(encoding="utf-8", errors="replace").strip(), str(self._path))


def check_key(key: str, source: str) -> str:
    """The key. ValueError, without the key in it, where gRPC would refuse it and print it."""
    if not _SENDABLE.fullmatch(key):
        raise ValueError(f"{source}: expected a key of printable ASCII characters without spaces")
    return key


def is_local(target: str) -> bool:
    """Whether a gRPC target can only be on this machine: loopback addresses, localhost, Unix sockets."""
    scheme, colon, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract") and colon:
        return True
    if scheme in ("ipv4", "ipv6") and colon:
        return all(_is_loopback(_host(each)) for each in rest.lstrip("/").split(","))
    if scheme == "dns" and colon:
        return _is_loopback(_host(rest.rpartition("/")[2]))
    return "/" not in target and _is_loopback(_host(target))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
