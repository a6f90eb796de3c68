"""How a process comes into its group: device, connections, its part of the model. Knows no command."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass

import torch

from services.common.errors import ConfigError
from services.common.spec.run import RunSpec
from services.learner.config import LearnerConfig
from services.learner.distributed.group import Place, TorchGroup
from services.learner.pretraining import load_texts
from services.learner.training import Trainer
from services.models.loading import LoadedModel, load_causal

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Part:
    """This process' part. serving: the dtype of passes and of what is published."""

    loaded: LoadedModel
    trainer: Trainer
    serving: torch.dtype


def join(config: LearnerConfig, place: Place) -> TorchGroup:
    """Meet the others. Raises ConfigError where the run or the configuration does not fit several processes."""
    if config.processes not in (1, place.size):
        raise ConfigError(f"processes = {config.processes}, but torchrun started {place.size}")
    if problem := config.run.alone_because:
        raise ConfigError(f"run: {problem}")
    return TorchGroup(place, device_of(config.run.model.device, place))


def end_with_launcher() -> None:
    """SIGTERM for this process when the one that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def device_of(name: str, place: Place) -> torch.device:
    """A GPU for each process of a node, or the CPU for all. Raises ConfigError for one GPU that is named."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"run.model.device = {name}: {place.size} processes take one GPU each, so: auto, cuda or cpu"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if there < place.local_size:
        raise ConfigError(f"{place.local_size} processes on this node need as many GPUs, it has {there}")
    return torch.device("cuda", place.local_rank)


def load_part(spec: RunSpec, group: TorchGroup) -> Part:
    """One process of a node after the other: the model is loaded into main memory, and only shards of it stay.

    Raises NotFound and InvalidInput, as for a learner alone.
    """
    threads = spec.model.threads or max(1, len(os.sched_getaffinity(0)) // group.place.local_size)
    model = spec.model.model_copy(update={"device": "cpu", "threads": threads})
    placed = spec.model_copy(update={"model": model})

    def load() -> Part:
        loaded = load_causal(model)
        serving = loaded.model.dtype
        texts = load_texts(spec.data, loaded.tokenizer)
        return Part(loaded, Trainer(loaded, placed, texts, group=group), serving)

    part: Part = group.in_turn(load)
    return part
