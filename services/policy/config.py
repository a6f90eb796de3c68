"""The policy service's configuration: what all services have, a model, an engine, where weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from services.common.spec.base import Spec
from services.common.spec.channel import ChannelSpec
from services.common.spec.run import SwapMode
from services.common.spec.service import ModelSpec, ServiceSpec
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


class EngineSpec(Spec):
    """[engine]: what generates. [model] names its tokenizer in every case, its weights where they run in process."""

    kind: Literal["transformers", "vllm", "tgi", "openai"] = "transformers"
    url: str = Field("", description="The server's, for vllm, tgi and openai: http://host:port.")
    command: tuple[str, ...] = Field(
        (), description="vllm: what to start beside this one instead, as in ['vllm', 'serve']."
    )
    flags: tuple[str, ...] = Field((), description="vllm: more flags of its `serve`.")
    served_model: str = Field("", description="openai: the model's name there; empty: the first one listed.")
    api_key: SecretStr = Field(SecretStr(""), description="Sent as a bearer token.")
    weights_folder: Path | None = Field(
        None, description="vllm: a folder that it sees too, for new weights; absent: it keeps those it has."
    )
    timeout_seconds: float = Field(600, gt=0, description="One call of the server, at most.")
    require: tuple[Capability, ...] = Field(
        (), description="What the engine must be able to do; one that cannot refuses to start."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "transformers":
            if self.url or self.command:
                raise ValueError("the transformers engine runs in process: it takes neither url nor command")
        elif self.command and (self.url or self.kind != "vllm"):
            raise ValueError("command is for the vllm engine, in place of a url")
        elif not self.url and not self.command:
            raise ValueError(
                f"the {self.kind} engine needs a url" + (" or a command" * (self.kind == "vllm"))
            )
        if self.weights_folder and self.kind != "vllm":
            raise ValueError("weights_folder is for the vllm engine")
        return self


class PolicyConfig(ServiceSpec):
    """[server] [queue] [model] [weights] [log] [engine]."""

    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    weights: WeightSourceSpec | None = None
    max_rows: int = Field(64, ge=1, description="Completions generated at once.")
    max_completions: int = Field(4096, ge=1, description="Completions in one call.")
    max_new_tokens: int = Field(4096, ge=1, description="Most tokens that a call may ask for.")
