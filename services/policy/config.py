"""The policy service's configuration: what all services have, a model, an engine, where weights come from."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator

from services.common.spec import engine
from services.common.spec.channel import ChannelSpec
from services.common.spec.decoding import DecodingSpec
from services.common.spec.run import MOST_NEW_TOKENS, SwapMode
from services.common.spec.service import FABRIC_AND_TLS, ModelSpec, ServiceSpec
from services.policy.engines.base import Capability


class WeightSourceSpec(ChannelSpec):
    """Who publishes new weights, and how to reach it. Without it the policy serves what it loaded."""

    address: str = Field(min_length=1, description="host:port of a WeightService, the learner's.")
    retry_seconds: float = Field(0.5, gt=0, description="Pause before asking again when it is away.")
    wait_seconds: float = Field(120, gt=0, description="How long work waits for weights that it needs.")
    deltas: bool = Field(True, description="Take what changed instead of whole tensors where that is less.")
    folder: str = Field(
        "", description="The learner's weights.folder, where both are on one machine; empty: all by gRPC."
    )
    fabric: str = Field(
        "",
        max_length=63,
        description="Name of what this replica and the sources that say the same share: large weights go over it, by "
        "NCCL between GPUs, by gloo between processors, in the clear; empty: all by gRPC.",
    )
    peer_address: str = Field(
        "",
        description="host:port where other replicas get weights from this one; auto: its address towards the "
        "learner and server.port; empty: it passes nothing on.",
    )
    peer_name: str = Field(
        "",
        max_length=253,
        description="As server_name, for other replicas; empty: the host of their address.",
    )
    stall_seconds: float = Field(3, gt=0, description="Silence after which another source is asked.")
    peer_wait_seconds: float = Field(
        10, gt=0, description="How long a peer may say that it does not have a version yet."
    )
    max_behind_steps: int | None = Field(
        None, ge=0, description="Further behind the learner it takes no work and is not ready; absent: never."
    )
    swap: SwapMode = Field("wait", description="What becomes of generation in flight; see RolloutSpec.swap.")

    def to_peers(self) -> ChannelSpec:
        """How other replicas are called: as the learner is, but for the name in their certificates."""
        return self.model_copy(update={"server_name": self.peer_name})


class EngineSpec(engine.EngineSpec):
    """[engine]: what generates, and what it must be able to do."""

    api_key: SecretStr = Field(SecretStr(""), description="Sent as a bearer token; or key_file.")
    require: tuple[Capability, ...] = Field(
        (), description="What the engine must be able to do; one that cannot refuses to start."
    )

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_file and self.api_key.get_secret_value():
            raise ValueError("expected one of api_key and key_file")
        return self


class PolicyConfig(ServiceSpec):
    """[server] [queue] [model] [weights] [log] [engine] [decoding]."""

    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    decoding: DecodingSpec = DecodingSpec()
    weights: WeightSourceSpec | None = None
    max_rows: int = Field(64, ge=1, description="Completions generated at once.")
    max_completions: int = Field(4096, ge=1, description="Completions in one call.")
    max_new_tokens: int = Field(MOST_NEW_TOKENS, ge=1, description="Most tokens that a call may ask for.")

    @model_validator(mode="after")
    def _fabric(self) -> Self:
        if self.weights is not None and self.weights.fabric and self.tls is not None:
            raise ValueError(FABRIC_AND_TLS)
        return self

    @model_validator(mode="after")
    def _engine_decodes(self) -> Self:
        """Before anything is started: what runs elsewhere draws from its own distribution."""
        if self.decoding.table and self.engine.kind != "transformers":
            raise ValueError(
                f"{self.decoding.table} needs the transformers engine: {self.engine.kind} cannot change what is drawn"
            )
        return self
