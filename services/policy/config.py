"""The policy service's configuration: what all services have, a model, an engine, where weights come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.spec.channel import ChannelSpec
from services.common.spec.run import SwapMode
from services.common.spec.service import ModelSpec, ServiceSpec


class WeightSourceSpec(ChannelSpec):
    """Who publishes new weights, and how to reach it. Without it the policy serves what it loaded."""

    address: str = Field(min_length=1, description="host:port of a WeightService, the learner's.")
    retry_seconds: float = Field(0.5, gt=0, description="Pause before asking again when it is away.")
    wait_seconds: float = Field(120, gt=0, description="How long work waits for weights that it needs.")
    deltas: bool = Field(True, description="Take what changed instead of whole tensors where that is less.")
    peer_address: str = Field(
        "",
        description="host:port where other replicas get weights from this one; auto: its address towards the "
        "learner and server.port; empty: it passes nothing on.",
    )
    stall_seconds: float = Field(3, gt=0, description="Silence after which another source is asked.")
    peer_wait_seconds: float = Field(
        10, gt=0, description="How long a peer may say that it does not have a version yet."
    )
    max_behind_steps: int | None = Field(
        None, ge=0, description="Further behind the learner it takes no work and is not ready; absent: never."
    )
    swap: SwapMode = Field("wait", description="What becomes of generation in flight; see RolloutSpec.swap.")


class PolicyConfig(ServiceSpec):
    """[server] [queue] [model] [weights] [log] and the engine."""

    model: ModelSpec
    engine: Literal["transformers"] = "transformers"
    weights: WeightSourceSpec | None = None
    max_rows: int = Field(64, ge=1, description="Completions generated at once.")
    max_completions: int = Field(4096, ge=1, description="Completions in one call.")
    max_new_tokens: int = Field(4096, ge=1, description="Most tokens that a call may ask for.")
