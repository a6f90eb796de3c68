"""This machine's own address, as another one sees it."""

from __future__ import annotations

import socket

_ANY_PORT = 9


def address_towards(host: str, port: int = _ANY_PORT) -> str:
    """The address that packets to `host` leave from. Raises OSError where there is no way to it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of datagrams: nothing is sent, but the route is chosen
        return str(probe.getsockname()[0])


def host_and_port(address: str) -> tuple[str, int]:
    """Of host:port or dns:///host:port. Raises ValueError."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    return host, int(port)


def host_of_peer(peer: str) -> str:
    """Of what gRPC calls a caller: ipv4:1.2.3.4:5678 or ipv6:%5B::1%5D:5678; loopback for a socket of this machine."""
    kind, _, rest = peer.partition(":")
    if not kind.startswith("ipv"):
        return "127.0.0.1"
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
