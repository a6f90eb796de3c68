"""Digests of models as people write them: the hex that a service names, or algorithm:hex. Computes none."""

from __future__ import annotations

DIGEST_PATTERN = r"^([a-z0-9]+:)?[0-9a-f]{16,128}$"


def same_digest(one: str, other: str) -> bool:
    """Whether both name one model; services name no algorithm, so that of a pin is not compared."""
    return one.rpartition(":")[2] == other.rpartition(":")[2]
