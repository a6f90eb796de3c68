"""The shape of `summary.json`: a run's result in figures that must fit together. Computes none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.demo.files import write_atomically
from services.common.errors import Corrupted, NotFound

SUMMARY_FILE = "summary.json"

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RolloutCounts(_Figures):
    """Groups by what became of them: admitted = trained + stale + failed + in_flight."""

    admitted: Count
    trained: Count
    stale: Count = 0
    failed: Count = 0
    in_flight: Count = 0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        known = self.trained + self.stale + self.failed + self.in_flight
        if known != self.admitted:
            raise ValueError(f"{self.admitted} groups were admitted but {known} are accounted for")
        return self


class Summary(_Figures):
    """One run's result. Times in seconds, KL in nats, shares between 0 and 1."""

    model: str = Field(min_length=1, description="The model that was trained, as the user named it.")
    reward_model: str = Field(min_length=1, description="What gave the rewards.")
    annotator: str = Field("", description="What scored and compared the held-out answers.")
    seed: Count
    steps: Count
    seconds: NotNegative = Field(description="Wall time of the whole run, set-up not counted.")
    phases: dict[str, NotNegative] = Field(description="Seconds by phase, in the order in which they ran.")
    win_rate: Share
    win_rate_low: Share = Field(description="2.5 % point of a bootstrap over prompts.")
    win_rate_high: Share | None = Field(None, description="97.5 % point of the same bootstrap.")
    comparisons: int = Field(ge=1)
    score_before: float
    score_after: float
    distinct_ratio: NotNegative = Field(description="distinct-2, after over before.")
    length_ratio: NotNegative = Field(description="Mean length in tokens, after over before.")
    sequence_kl: float = Field(description="Policy to reference, on the held-out prompts.")
    reward_model_accuracy: Share = Field(
        description="Held-out pairs that the reward model ranks as labelled."
    )
    rollouts: RolloutCounts
    overhead_share: Annotated[float, Field(le=1)] = Field(
        description="1 - time inside models / wall time of a step, median."
    )
    peak_memory_gib: NotNegative = Field(description="Largest sum of PSS over all processes of the run.")
    tokens_per_second: NotNegative
    versions: dict[str, str] = Field(
        description="Packages, and whatever else made the figures what they are."
    )

    @model_validator(mode="after")
    def _interval_contains_rate(self) -> Self:
        high = 1.0 if self.win_rate_high is None else self.win_rate_high
        rounding = 1e-9
        if not self.win_rate_low - rounding <= self.win_rate <= high + rounding:
            raise ValueError(f"win rate {self.win_rate} is outside {self.win_rate_low} to {high}")
        return self


def write_summary(folder: Path, summary: Summary) -> Path:
    """Write `summary.json` into `folder`, atomically, and return its path."""
    path = folder / SUMMARY_FILE
    write_atomically(path, summary.model_dump_json(indent=2, exclude_none=True) + "\n")
    return path


def read_summary(folder: Path) -> Summary:
    """Read and check `summary.json`. Raises NotFound, or Corrupted naming the first field that is wrong."""
    path = folder / SUMMARY_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise Corrupted(f"{path}: not UTF-8 text") from error
    try:
        return Summary.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise Corrupted(f"{path}: {field}: {first['msg']}") from error
