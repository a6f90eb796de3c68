"""Names of Services and pods as a cluster's DNS knows them, and a server that answers them. No forwarding.

https://github.com/kubernetes/dns/blob/master/docs/specification.md, A records alone. Answers come from Services and
the pods that they select, as the EndpointSlice controller would have them; its slices cannot hold loopback addresses.
A Service with an address of its own is answered by its pods', since nothing forwards that address here.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from typing import Any

Object = Mapping[str, Any]
DOMAIN = "cluster.local"
A, IN = 1, 1
SECONDS = 2
"""Time to live: gRPC's resolver asks again for itself, nobody shall remember."""
NXDOMAIN, NOT_IMPLEMENTED = 3, 4


class Names:
    """Services and pods of all namespaces, and what a name stands for."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, str], Object] = {}
        self.pods: dict[tuple[str, str], Object] = {}

    def look_up(self, name: str) -> list[str] | None:
        """Addresses, sorted; None where there is no such name. A Service without ready pods has none."""
        labels = name.rstrip(".").lower().removesuffix(f".{DOMAIN}").split(".")
        if not name.rstrip(".").lower().endswith(f".svc.{DOMAIN}"):
            return None
        match labels[:-1]:
            case [service, namespace]:
                return self._of_service(namespace, service)
            case [host, service, namespace]:
                return self._of_pod(namespace, service, host)
        return None

    def _of_service(self, namespace: str, name: str) -> list[str] | None:
        service = self.services.get((namespace, name))
        if service is None:
            return None
        return sorted(pod["status"]["podIP"] for pod in self._behind(namespace, service))

    def _of_pod(self, namespace: str, name: str, host: str) -> list[str] | None:
        service = self.services.get((namespace, name))
        if service is None:
            return None
        found = [
            pod["status"]["podIP"]
            for pod in self._behind(namespace, service)
            if pod["spec"].get("subdomain") == name and pod["spec"].get("hostname") == host
        ]
        return sorted(found) or None

    def _behind(self, namespace: str, service: Object) -> Iterable[Object]:
        spec = service["spec"]
        selector = spec.get("selector") or {}
        if not selector:
            return
        for (where, _), pod in self.pods.items():
            labels = pod["metadata"].get("labels") or {}
            chosen = where == namespace and all(labels.get(key) == value for key, value in selector.items())
            if chosen and is_endpoint(pod, not_ready_too=bool(spec.get("publishNotReadyAddresses"))):
                yield pod


def is_endpoint(pod: Object, *, not_ready_too: bool) -> bool:
    """Whether a Service that selects the pod has it among its ready endpoints."""
    status = pod.get("status") or {}
    if not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    if not_ready_too:
        return True
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return ready and not pod["metadata"].get("deletionTimestamp")


def answer(query: bytes, names: Names) -> bytes:
    """The whole reply to a query of one question; b"" for what is no query."""
    if len(query) < 17 or query[2] & 0x80:
        return b""
    number, flags, questions = struct.unpack_from("!HHH", query)
    name, end = _name(query, 12)
    kind = struct.unpack_from("!H", query, end)[0]
    question = query[12 : end + 4]
    code, found = 0, []
    if questions != 1 or flags & 0x7800:
        code = NOT_IMPLEMENTED
    else:
        addresses = names.look_up(name)
        code = NXDOMAIN if addresses is None else 0
        found = (addresses or []) if kind == A else []
    # Response, authoritative; what was asked for about recursion is repeated.
    header = struct.pack("!HHHHHH", number, 0x8480 | (flags & 0x0100) | code, 1, len(found), 0, 0)
    records = b"".join(
        struct.pack("!HHHIH4B", 0xC00C, A, IN, SECONDS, 4, *(int(part) for part in address.split(".")))
        for address in found
    )
    return header + question + records


def _name(query: bytes, at: int) -> tuple[str, int]:
    labels = []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    return ".".join(labels), at + 1


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            reply = answer(data, self._names)
        except (IndexError, struct.error):
            return
        if reply and self._transport is not None:
            self._transport.sendto(reply, addr)


async def serve(names: Names, address: str, port: int = 53) -> asyncio.DatagramTransport:
    """Answer on UDP until the transport is closed."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Protocol(names), local_addr=(address, port))
    return transport


def resolv_conf(server: str, namespace: str) -> str:
    """/etc/resolv.conf of a pod with dnsPolicy ClusterFirst."""
    search = f"{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    return f"nameserver {server}\nsearch {search}\noptions ndots:5 timeout:2 attempts:2\n"
