"""A trainer's state in shards, by torch.distributed.checkpoint: written by n processes, read by any number.

    trainer/state.pt     everything small, and what every process has; None where a sharded tensor belongs
    trainer/shards/      those tensors: each process writes its rows, each reads the rows that are its own then

Names in shards/: masters.<i>, moments.<i>.<key>, i the place among the trained parameters, which does not depend on the
number of processes. Read only from the run's own folder: the metadata there is a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard

from services.common.errors import Corrupted
from services.learner.checkpoints import SHARDS_FOLDER, STATE_FILE

Sharded = Sequence[DTensor | None]
"""Of each trained parameter: itself where it is sharded, None where every process has it."""


def write_state(state: dict[str, Any], sharded: Sharded, folder: Path, group: Any, *, first: bool) -> None:
    """Called by all processes with their own state; on return all of it is on disk. `first`: writes what is whole."""
    shards, state = {}, _own(state)
    for place, name, values, key in _places(state):
        like = sharded[place]
        if like is not None and values[key].shape == like.to_local().shape:
            shards[name] = _as_shard(values[key], like)
            values[key] = None
    if first:
        torch.save(state, folder / STATE_FILE)
    _raising(
        lambda: save(shards, storage_writer=FileSystemWriter(folder / SHARDS_FOLDER), process_group=group)
    )


def read_state(sharded: Sharded, folder: Path, group: Any) -> dict[str, Any]:
    """This process' state, of a checkpoint written by any number of processes. Called by all of them."""
    state: dict[str, Any] = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu", mmap=True)
    if not (folder / SHARDS_FOLDER).is_dir():
        for place, _, values, key in _places(state):
            like = sharded[place]
            if like is not None and values[key].shape == like.shape:
                values[key] = _rows_of(values[key], like).clone()
        return state
    wanted = {}
    for place, name, values, key in _places(state):
        like = sharded[place]
        if values[key] is None and like is not None:
            wanted[name] = _as_shard(torch.empty_like(like.to_local(), dtype=torch.float32), like)
    _load(wanted, folder / SHARDS_FOLDER, process_group=group)
    for _, name, values, key in _places(state):
        if values[key] is None:
            values[key] = wanted[name].to_local()
    return state


def joined(state: dict[str, Any], shards: Path) -> None:
    """Fill one process' state with the whole tensors. No group is needed."""
    stored = FileSystemReader(shards).read_metadata().state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is asked for
        _load(whole, shards, no_dist=True)
    for _, name, values, key in _places(state):
        if values[key] is None:
            values[key] = whole[name]


def _places(state: dict[str, Any]) -> Iterator[tuple[int, str, Any, Any]]:
    """Wherever a tensor of a trained parameter may stand: which one, its name, and what holds it under which key."""
    weights = state["optimiser"]
    for place in range(len(weights["masters"])):
        yield place, f"masters.{place}", weights["masters"], place
    for place, moments in weights["optimiser"]["state"].items():
        for key in list(moments):
            yield place, f"moments.{place}.{key}", moments, key


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """Containers of its own, down to where tensors stand: those of the optimiser are the live ones."""
    weights = dict(state["optimiser"])
    weights["masters"] = list(weights["masters"])
    inner = weights["optimiser"]
    weights["optimiser"] = inner | {"state": {place: dict(one) for place, one in inner["state"].items()}}
    return state | {"optimiser": weights}


def _as_shard(local: torch.Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        local, like.device_mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
    )


def _rows_of(whole: torch.Tensor, like: DTensor) -> torch.Tensor:
    """As FSDP2 deals rows out: equal chunks, the last ones smaller or empty."""
    mesh = like.device_mesh
    chunks, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else whole[:0]


def _load(wanted: dict[str, Any], shards: Path, **options: Any) -> None:
    _raising(lambda: load(wanted, storage_reader=FileSystemReader(shards), **options))


def _raising(work: Callable[[], Any]) -> None:
    """With what one process met as an ordinary exception in all: torch's own is a BaseException over all of them."""
    try:
        work()
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError | RuntimeError):
            raise cause from error
        raise Corrupted(f"a checkpoint's shards, process {rank}: {str(cause)[:200]}") from error
