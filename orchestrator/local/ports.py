"""Free ports on this machine that stay free while a service restarts. Knows no service."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from services.common.errors import Unavailable

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _HIGHEST = 10_240, 65_535
_EPHEMERAL = (32_768, 60_999)
_TRIES = 2_000


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nobody listens on. Raises Unavailable if there are not that many.

    From outside the range that the kernel gives to outgoing connections: while a service is down
    between two starts, some connection could otherwise sit on its port.
    """
    low, high = _ephemeral_range()
    candidates = [*range(_LOWEST, low), *range(high + 1, _HIGHEST)] or list(range(_LOWEST, _HIGHEST))
    # Not from the run's seed: two runs with the same seed must not collide.
    chosen = random.SystemRandom().sample(candidates, min(_TRIES, len(candidates)))
    free: list[int] = []
    for port in chosen:
        if len(free) == count:
            break
        if is_free(port, host):
            free.append(port)
    if len(free) < count:
        raise Unavailable(f"found only {len(free)} of {count} free ports on {host}")
    return free


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a listener could take it now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Two sockets may be bound to a port that none listens on; only one may listen.
            probe.listen(1)
        except OSError:
            return False
    return True


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = (int(word) for word in _RANGE_FILE.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return _EPHEMERAL
    return low, high
