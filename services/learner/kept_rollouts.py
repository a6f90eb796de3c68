"""Rollouts kept as Parquet, one file a step and one row a completion, and read again as what the step took.

    rollouts/step-000123.parquet    group, prompt and completion ids, log-probs, masks, scores, versions

Written before the step with what the trainer is given, so that the same trainer makes the same loss of it. Owns the
columns; pyarrow comes with the extra `data`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.common import mask_bits
from services.common.errors import ConfigError, Corrupted, InvalidInput, NotFound
from services.learner.checkpoints import storage_errors
from services.learner.sample import Sample
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

_ARRAYS = {
    "prompt_ids": np.int32,
    "completion_ids": np.int32,
    "behaviour_logprobs": np.float32,
    "reference_logprobs": np.float32,
    "loss_mask": np.float32,
}
_PLAIN = ("score", "ended", "group", "temperature", "top_p")


def rollout_file(folder: Path, step: int) -> Path:
    """Of the step that makes `step` steps done."""
    return folder / f"step-{step:06d}.parquet"


def keep_rollouts(path: Path, batch: Sequence[tuple[RolloutGroup, Sequence[Sample]]]) -> None:
    """Write a step's batch, whole or not at all. Raises StorageFull, ConfigError without pyarrow."""
    arrow, parquet = _pyarrow()
    rows = [row for group, samples in batch for row in _rows(group, samples)]
    table = arrow.Table.from_pylist(rows)
    aside = path.with_name(f".{path.name}.writing")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, aside, compression="zstd")
        aside.replace(path)


def read_rollouts(path: Path) -> list[Sample]:
    """The samples of a step, in its order. Raises NotFound, Corrupted."""
    arrow, parquet = _pyarrow()
    if not path.is_file():
        raise NotFound(f"{path}: no rollouts of this step were kept (rollout.keep)")
    try:
        rows = parquet.read_table(path).to_pylist()
        return [_sample(row) for row in rows]
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, InvalidInput) as error:
        raise Corrupted(f"{path} cannot be read: {str(error)[:200]}") from error


def check_can_keep() -> None:
    """Raises ConfigError, before anything is trained, where pyarrow is not there."""
    _pyarrow()


def _rows(group: RolloutGroup, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    found = []
    for sample, completion in zip(samples, group.completions, strict=True):
        row: dict[str, Any] = {name: getattr(sample, name) for name in (*_ARRAYS, *_PLAIN)}
        if sample.action_masks is not None:
            row["action_masks"] = mask_bits.to_wire(sample.action_masks)
        row["admission_number"] = group.admission_number
        row["prompt_id"] = group.prompt.prompt_id
        row["text"] = completion.text
        row["scores"] = json.dumps({one.stage: one.score.value for one in completion.scores})
        # On which scale that is: two models' scores of one stage mean different things.
        row["reward_models"] = json.dumps({one.stage: one.score.model_digest for one in completion.scores})
        row["versions"] = json.dumps(
            [[one.version.epoch, one.version.step, one.version.digest] for one in completion.versions]
        )
        found.append(row)
    return found


def _sample(row: dict[str, Any]) -> Sample:
    arrays: dict[str, Any] = {name: np.array(row[name], kind) for name, kind in _ARRAYS.items()}
    masks = None
    if row.get("action_masks") is not None:
        masks = mask_bits.from_wire(row["action_masks"], len(arrays["completion_ids"]), field="action_masks")
    return Sample(**arrays, **{name: row[name] for name in _PLAIN}, action_masks=masks)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("rollout.keep writes Parquet: pip install 'trimtab-platform[data]'") from error
