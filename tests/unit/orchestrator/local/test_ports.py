"""Free ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.local.ports import free_ports, is_free


def test_ports_are_free_and_different() -> None:
    """Each can be listened on, none is given twice."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)


def test_ports_are_outside_the_outgoing_range() -> None:
    """No outgoing connection can take the port of a service that restarts."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if low <= 10_240 and high >= 65_534:
        pytest.skip("this machine's outgoing range leaves no room")
    assert not any(low <= port <= high for port in free_ports(20))


def test_taken_port_is_seen() -> None:
    """A port that somebody listens on is not free, and is free again when they leave."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
