"""Reads what the logs wrote, with the libraries' own readers where they have one."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7

Points = dict[str, list[tuple[int, float]]]
"""By metric: (step, value) in the order in which they are read."""


def of_tensorboard(folder: Path) -> Points:
    """Scalars of an event folder, as TensorBoard itself shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def of_mlflow(folder: Path, run_id: str) -> Points:
    """Histories of all metrics of a run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").absolute().as_uri())
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def of_wandb(file: Path) -> tuple[str, Points]:
    """(run id, points) of an offline run's file: records of a LevelDB log, each a protobuf message."""
    run_id, points = "", Points()
    for record in _whole(file):
        if record.WhichOneof("record_type") == "run":
            run_id = record.run.run_id
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in row.items():
                points.setdefault(name, []).append((row["step"], value))
    return run_id, points


def _whole(file: Path) -> list[Any]:
    """All records up to the one that ends a run: W&B's own process writes it after `finish` has returned."""
    from wandb.proto import wandb_internal_pb2

    until = time.monotonic() + 30
    while True:
        records = []
        for payload in _records(file.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(payload)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < until, f"{file} has no end"
        time.sleep(0.02)


def _records(raw: bytes) -> Iterator[bytes]:
    at, parts = _HEADER, list[bytes]()
    while at + _HEADER <= len(raw):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        if at + _HEADER + length > len(raw):
            return  # not all of it is there yet
        parts.append(raw[at + _HEADER : at + _HEADER + length])
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part of several
            yield b"".join(parts)
            parts = []
