"""The reward service's configuration: what all services have, and which sources of scores it begins with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from services.common.digests import DIGEST_PATTERN
from services.common.spec.base import Spec
from services.common.spec.service import Dtype, ServiceSpec
from services.reward.drift import DriftSpec
from services.reward.request_log import RequestLogSpec

NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
# A day: what waits takes its time in milliseconds of 32 bits.
MOST_SECONDS = 86_400.0
_KINDS = ("path", "rule", "function", "composite", "running", "remote", "judge")


def is_name(text: str) -> bool:
    """Whether a model may have this name."""
    return bool(re.fullmatch(NAME_PATTERN, text)) and len(text) <= 63


class Component(Spec):
    """One part of a composite: a model of this service, and how its value enters the sum."""

    model: str = Field(min_length=1, max_length=63, pattern=NAME_PATTERN)
    weight: float = 1.0
    clip: tuple[float, float] | None = Field(
        None, description="Lowest and highest value that enters the sum."
    )
    mean: float = Field(0.0, description="Subtracted after the clip.")
    deviation: float = Field(1.0, gt=0, description="Divided by after the mean is subtracted.")

    @model_validator(mode="after")
    def _clip_in_order(self) -> Component:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError("expected clip = [low, high] with low below high")
        return self


class CompositeSpec(Spec):
    """A weighted sum of named components; see rewards/composite.py for the two aggregations of TRL."""

    components: tuple[Component, ...] = Field(min_length=1, max_length=64)
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    mean: float = Field(0.0, description="sum_then_normalize: subtracted from the sum.")
    deviation: float = Field(1.0, gt=0, description="sum_then_normalize: the sum is divided by it.")
    clip: tuple[float, float] | None = Field(None, description="Bounds of the final value.")
    absent: Literal["error", "skip"] = Field(
        "error",
        description="A component without a score for a row: an error, or left out of that row's sum (TRL).",
    )


class RunningSpec(Spec):
    """Running normalisation of another model's values; see rewards/running.py for why it is for one replica."""

    model: str = Field(min_length=1, max_length=63, pattern=NAME_PATTERN)
    single_replica: Literal[True] = Field(
        description="Must be said: with several replicas equal answers would get different scores."
    )
    clip: float = Field(10.0, gt=0, description="Largest distance from 0, in deviations.")


class FunctionSpec(Spec):
    """A user's Python function, run in worker processes of its own."""

    name: str = Field(
        min_length=1, description="Entry point of group trimtab.rewards, or package.module:function."
    )
    timeout_seconds: float = Field(
        5.0, gt=0, le=MOST_SECONDS, description="For one call, of at most batch_rows rows."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes.")
    batch_rows: int = Field(64, ge=1, description="Rows handed over in one call.")
    convention: Literal["plain", "trl"] = Field(
        "plain",
        description="trl: called as TRL's trainers call reward_funcs; None for a row is no score of it.",
    )


class RemoteSpec(Spec):
    """Another reward service, forwarded to."""

    url: str = Field(min_length=1, description="grpc(s)://host:port, http(s)://host:port[/v1/score].")
    model: str = Field("", description="Its name over there.")
    digest: str | None = Field(
        None, pattern=DIGEST_PATTERN, description="No score of another model is taken; left out: of any."
    )
    key: SecretStr | None = Field(None, description="API key for the other service.")
    key_file: Path | None = Field(None, description="File with the key; read anew when it changes.")
    ca_file: Path | None = Field(None, description="Certificates to trust; grpc:// then speaks TLS.")
    certificate_file: Path | None = Field(None, description="Our own, where the other service asks for one.")
    private_key_file: Path | None = Field(None, description="Its key, without a password.")
    allow_plaintext: bool = Field(False, description="Send the key without TLS beyond this machine.")
    timeout_seconds: float = Field(30.0, gt=0, le=MOST_SECONDS)
    attempts: int = Field(3, ge=1, le=10)
    breaker_failures: int = Field(5, ge=1, description="Failures in a row that open the circuit.")
    breaker_seconds: float = Field(10.0, gt=0, description="How long it stays open before one call is tried.")
    concurrent_calls: int = Field(8, ge=1, le=256)

    @model_validator(mode="after")
    def _whole_pair(self) -> RemoteSpec:
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ValueError("expected certificate_file and private_key_file together")
        return self


class JudgeSpec(Spec):
    """A generative judge behind an OpenAI-compatible API."""

    url: str = Field(min_length=1, description="Base URL, for example http://host:8000/v1.")
    model: str = Field(min_length=1)
    key: SecretStr | None = None
    key_file: Path | None = None
    allow_plaintext: bool = Field(False, description="Send the key without TLS beyond this machine.")
    prompt: str = Field(
        "Rate the answer to the question below from 0 (useless) to 10 (excellent).\n\n"
        "Question:\n{prompt}\n\nAnswer:\n{completion}\n\nWrite the rating as a number, nothing else.",
        min_length=1,
        description="{prompt}, {completion} and {columns[name]} are filled in.",
    )
    pattern: str = Field(r"(-?\d+(?:\.\d+)?)", description="Its first group in the answer is the value.")
    low: float = Field(0.0, description="Values below are an error.")
    high: float = Field(10.0, description="Values above are an error.")
    max_tokens: int = Field(16, ge=1)
    timeout_seconds: float = Field(60.0, gt=0, le=MOST_SECONDS)
    attempts: int = Field(3, ge=1, le=10)
    concurrent_calls: int = Field(8, ge=1, le=256)
    breaker_failures: int = Field(5, ge=1)
    breaker_seconds: float = Field(10.0, gt=0)


class SourceSpec(Spec):
    """Where scores come from: exactly one of path, rule, function, composite, running, remote, judge."""

    path: str = Field("", description="Folder of a reward model, safetensors only.")
    rule: str = Field("", description="A rule, for example sentiment or length:target=40.")
    function: FunctionSpec | None = None
    composite: CompositeSpec | None = None
    running: RunningSpec | None = None
    remote: RemoteSpec | None = None
    judge: JudgeSpec | None = None
    dtype: Dtype | None = Field(None, description="Of this model; the service's own where it is left out.")
    device: str | None = Field(None, description="Of this model; the service's own where it is left out.")
    max_tokens: int = Field(
        0, ge=0, description="Published models: rows are cut to this; 0: what the model was made for."
    )
    label: int = Field(0, ge=0, description="Sequence classification with several labels: the one scored.")
    step_separator: str = Field("\n\n", min_length=1, description="Process reward models: ends a step.")
    step_reduction: Literal["last", "min", "mean", "product"] = Field(
        "min", description="Process reward models: from the steps' scores to the value (arXiv 2305.20050)."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> SourceSpec:
        if sum(bool(getattr(self, kind)) for kind in _KINDS) != 1:
            raise ValueError(f"expected one of {', '.join(_KINDS)}")
        return self

    @property
    def made_of_others(self) -> bool:
        """Whether it scores by other models of this service, which must be there first."""
        return self.composite is not None or self.running is not None


class RewardEntry(SourceSpec):
    """One [[models]]: a name, and where its scores come from."""

    name: str = Field(min_length=1, max_length=63, pattern=NAME_PATTERN)


class RewardConfig(ServiceSpec):
    """[server] [tls] [access] [queue] [log] [tracing], [[models]], how they are run and watched.

    Without models it waits for LoadModel.
    """

    models: tuple[RewardEntry, ...] = ()
    queue_model: str = Field("", description="Model of the queue's stage; empty: the name in reward/<name>.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where it is quicker than float32, else that.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, …")
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    token_budget: int = Field(4096, ge=16, description="Tokens in one forward pass.")
    max_rows: int = Field(4096, ge=1, description="Inputs in one call.")
    max_characters: int = Field(1_000_000, ge=1, description="Of one input, all its text together.")
    max_queued_rows: int = Field(16384, ge=1, description="Rows that wait for one model; more are refused.")
    max_queued_tokens: int = Field(8_000_000, ge=1, description="Tokens that wait for one model.")
    drift: DriftSpec = DriftSpec()
    request_log: RequestLogSpec = RequestLogSpec()

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
