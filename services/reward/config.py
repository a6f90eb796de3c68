"""The reward service's configuration: what all services have, and which models and rules it begins with."""

from __future__ import annotations

from pydantic import Field, model_validator

from services.common.spec.base import Spec
from services.common.spec.service import Dtype, ServiceSpec

NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"


class RewardEntry(Spec):
    """One [[models]]: a name, and either the folder of a reward model or a rule."""

    name: str = Field(min_length=1, max_length=63, pattern=NAME_PATTERN)
    path: str = Field("", description="Folder of a reward model, safetensors only.")
    rule: str = Field("", description="A rule instead, for example sentiment or length:target=40.")

    @model_validator(mode="after")
    def _one_of_both(self) -> RewardEntry:
        if bool(self.path) == bool(self.rule):
            raise ValueError("expected either path or rule")
        return self

    @property
    def location(self) -> str:
        """As LoadModel writes it: a folder, or rule:<rule>."""
        return self.path or f"rule:{self.rule}"


class RewardConfig(ServiceSpec):
    """[server] [queue] [log], [[models]], and how models are run. Without models it waits for LoadModel."""

    models: tuple[RewardEntry, ...] = ()
    queue_model: str = Field("", description="Model of the queue's stage; empty: the name in reward/<name>.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the processor has it, else float32.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, …")
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    token_budget: int = Field(4096, ge=16, description="Padded tokens in one forward pass.")
    max_rows: int = Field(4096, ge=1, description="Inputs in one call.")

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        names = [entry.name for entry in self.models]
        if len(set(names)) < len(names):
            raise ValueError("expected models of different names")
        return self

    @property
    def stage(self) -> str:
        """The stage to work on; empty without a queue."""
        return "" if self.queue is None else self.queue.stage or "reward"

    @property
    def model_of_queue(self) -> str:
        """The name of the model that scores the stage; empty: the only one there is."""
        return self.queue_model or self.stage.partition("/")[2]
