"""Reading what a run left in its folder. A part that is absent or broken becomes a note, never a failure.

The report must be written for a run that broke off, too: that is when somebody looks.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from orchestrator.demo.summary import Summary, read_summary
from services.common.errors import NotFound, TrimtabError
from services.common.spec.watch import WatchSpec


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class RewardModelPoint(_Read):
    """One optimiser step of the reward model; accuracy is a share of pairs."""

    step: int
    loss: float | None = None
    accuracy: float | None = None


class RewardModelFile(_Read):
    """`reward_model.json`: how the reward model learned and what it reached on held-out pairs."""

    history: list[RewardModelPoint] = []
    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_longer_wins: float | None = None
    train_pairs: int | None = None
    held_out_pairs: int | None = None


class Sample(_Read):
    """One line of `samples.jsonl`: a held-out prompt, the answers to it, their annotator's scores."""

    prompt_id: str
    prompt: str
    before: str
    after: str
    score_before: float
    score_after: float


class WorstSample(_Read):
    """One line of `worst_samples.jsonl`: the reward against the annotator. kl in nats, where known."""

    step: int
    gap: float
    prompt: str
    completion: str
    score: float
    annotator: float | None = None
    length: int
    repetition: float
    kl: float | None = None


class Rating(_Read):
    """One entry of `ratings.json`: Elo with its 95 % interval."""

    subject: str
    rating: float
    low: float
    high: float
    comparisons: int


@dataclass(frozen=True)
class RunFiles:
    """What was found. `notes` say which part is absent or broken, one line each."""

    name: str
    summary: Summary | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)
    reward_model: RewardModelFile | None = None
    samples: list[Sample] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    worst: list[WorstSample] = field(default_factory=list)
    watch: WatchSpec = field(default_factory=WatchSpec)
    """Bounds of the alarms: of the run's spec, the defaults where that cannot be read."""
    notes: list[str] = field(default_factory=list)


Content = TypeVar("Content")


def read_run(folder: Path) -> RunFiles:
    """Everything that the report shows of the run in `folder`. Raises NotFound if there is no such folder."""
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder")
    notes: list[str] = []
    ratings = _whole(folder / "ratings.json", TypeAdapter(list[Rating]), notes)
    return RunFiles(
        name=folder.resolve().name,
        summary=_summary(folder, notes),
        metrics=[
            _numbers(row) for row in _lines(folder / "metrics.jsonl", TypeAdapter(dict[str, Any]), notes)
        ],
        reward_model=_whole(folder / "reward_model.json", TypeAdapter(RewardModelFile), notes),
        samples=_lines(folder / "samples.jsonl", TypeAdapter(Sample), notes),
        ratings=sorted(ratings or [], key=lambda rating: -rating.rating),
        worst=_if_there(folder / "worst_samples.jsonl", notes),
        watch=_watch(folder / "run.toml"),
        notes=notes,
    )


def _if_there(path: Path, notes: list[str]) -> list[WorstSample]:
    """A run that is not watched has none, which is no note."""
    return _lines(path, TypeAdapter(WorstSample), notes) if path.exists() else []


def _watch(path: Path) -> WatchSpec:
    try:
        return WatchSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")).get("watch", {}))
    except (OSError, ValueError):
        return WatchSpec()


def _summary(folder: Path, notes: list[str]) -> Summary | None:
    try:
        return read_summary(folder)
    except NotFound:
        notes.append("summary.json is absent: the run has not ended, or was not evaluated.")
    except TrimtabError as error:
        notes.append(f"{str(error).removeprefix(f'{folder}/')}.")
    return None


def _text(path: Path, notes: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is absent.")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
    return None


def _whole(path: Path, shape: TypeAdapter[Content], notes: list[str]) -> Content | None:
    text = _text(path, notes)
    if text is None:
        return None
    try:
        return shape.validate_json(text)
    except ValidationError as error:
        notes.append(f"{path.name} is broken: {_first(error)}.")
        return None


def _lines(path: Path, shape: TypeAdapter[Content], notes: list[str]) -> list[Content]:
    """The lines that can be read; a run that was killed may leave half a line at the end."""
    found: list[Content] = []
    broken: list[int] = []
    for row, text in enumerate((_text(path, notes) or "").split("\n"), 1):
        if not text.strip():
            continue
        try:
            found.append(shape.validate_python(json.loads(text)))
        except ValueError:  # pydantic's ValidationError is one, too
            broken.append(row)
    if broken:
        notes.append(f"{path.name}: {len(broken)} broken lines left out, the first is line {broken[0]}.")
    return found


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numeric entries; true and false are none. NaN stays: it is a gap in the curve."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and not (key == "step" and not math.isfinite(value))
    }


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
