"""What generates: the choice of an engine and its options. Shared by the policy service and whoever describes a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from services.common.spec.base import Spec

EngineKind = Literal["transformers", "vllm", "tgi", "openai"]
Word = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TAKES_WEIGHTS = ("transformers", "vllm")


class EngineSpec(Spec):
    """[engine]: what generates. [model] names its tokenizer in every case, its weights where they run in process."""

    kind: EngineKind = "transformers"
    url: str = Field(
        "",
        max_length=512,
        pattern=r"^(https?://[^\s@]+)?$",
        description="The server's, for vllm, tgi and openai: http://host:port.",
    )
    command: tuple[Word, ...] = Field(
        (),
        max_length=64,
        description="vllm: what to start beside this one instead, as in ['vllm', 'serve'].",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    flags: tuple[Word, ...] = Field(
        (),
        max_length=64,
        description="vllm: more flags of its `serve`.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    served_model: str = Field(
        "", max_length=512, description="openai: the model's name there; empty: the first one listed."
    )
    key_file: str = Field(
        "",
        max_length=1024,
        description="A file with the server's key, sent as a bearer token; read at start.",
    )
    weights_folder: str = Field(
        "",
        max_length=1024,
        description="vllm: a folder that it sees too, for new weights; empty: it keeps those it has.",
    )
    timeout_seconds: float = Field(600, gt=0, description="One call of the server, at most.")

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


def unfit_for_training(engine: EngineSpec, *, plain: bool, decoding: str) -> str:
    """Why a run that trains cannot have this engine; empty where it can.

    plain: completions are drawn at temperature 1 with nothing cut off; decoding: what bounds or guides them (see
    DecodingSpec.table).
    """
    kind = engine.kind
    if kind not in TAKES_WEIGHTS:
        return (
            f"engine.kind = {kind} takes no new weights, which a run's policy must: expected "
            f"{' or '.join(TAKES_WEIGHTS)}; {kind} is for a policy service of its own"
        )
    if kind == "transformers":
        return ""
    if decoding:
        return f"engine.kind = {kind} cannot change what is drawn, which this algorithm asks for ({decoding})"
    if not engine.weights_folder:
        return f"engine.weights_folder is missing: {kind} takes a run's new weights from a folder that it sees too"
    if not plain:
        return (
            f"engine.kind = {kind} samples at temperature 1 with nothing cut off: sampling.temperature stays 1, "
            "top_p 1, top_k and min_new_tokens 0"
        )
    return ""
