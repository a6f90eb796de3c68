"""Weights for other replicas: what this one holds, and where they find it."""

from __future__ import annotations

from services.common.errors import ConfigError
from services.common.routes import address_towards, host_and_port
from services.models import weight_servicer
from services.models.weight_servicer import SERVICE_NAME as WEIGHT_SERVICE_NAME
from services.policy.config import WeightSourceSpec

__all__ = ["WEIGHT_SERVICE_NAME", "PeerServicer", "own_address"]
_AUTO = "auto"


class PeerServicer(weight_servicer.WeightServicer):
    """The replica's WeightService. It knows no other readers than those that ask it."""

    loading = "the policy is loading"


def own_address(source: WeightSourceSpec, port: int) -> str:
    """host:port to tell the learner; empty where nothing is passed on. ConfigError where it cannot be known."""
    if source.peer_address != _AUTO:
        return source.peer_address
    if not port:
        raise ConfigError("weights.peer_address = auto needs server.port: peers must know where to ask")
    try:
        own = address_towards(*host_and_port(source.address))
    except (OSError, ValueError) as error:
        raise ConfigError(f"weights.peer_address = auto: no way to {source.address}: {error}") from None
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
