"""LearnerService: status and control of a real offline run of a tiny model, which pauses, goes on and is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.learner.application import LearnerApplication
from services.learner.config import LearnerConfig
from tests.fakes.tiny_models import make_tiny_causal
from tests.fuzz import rpc
from tests.fuzz.surface import Surface
from trimtab.learner.v1 import learner_pb2 as wire

_SERVICE = "trimtab.learner.v1.LearnerService"
# While a run begins, or has failed, there is no checkpoint to write.
_AWAY = frozenset({"UNAVAILABLE"})


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """It is stopped by one of the first calls; what is finished is asked the same."""
    make_tiny_causal(folder / "model")
    rows = [{"prompt": f"Count to {n}", "chosen": "one two", "rejected": "no"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LearnerConfig.model_validate(
        {
            "out": str(folder / "run"),
            "run": {
                "name": "small",
                "steps": 1_000,
                "model": {"path": str(folder / "model"), "dtype": "float32", "threads": 1, "device": "cpu"},
                "data": {"prompts": str(folder / "rows.jsonl")},
                "algorithm": {"kind": "dpo"},
                "rollout": {"batch_groups": 2},
                "checkpoint": {"every_steps": 1_000},
            },
        }
    )
    with (
        rpc.served(config, lambda: LearnerApplication(config)) as endpoints,
        rpc.surface(endpoints.grpc, _methods()) as surface,
    ):
        yield surface


def _methods() -> list[rpc.Method]:
    return [
        rpc.Method(f"{_SERVICE}/GetRunStatus", [wire.GetRunStatusRequest()], wire.GetRunStatusResponse),
        rpc.Method(f"{_SERVICE}/Pause", [wire.PauseRequest()], wire.PauseResponse, statuses=_AWAY),
        rpc.Method(f"{_SERVICE}/Resume", [wire.ResumeRequest()], wire.ResumeResponse, statuses=_AWAY),
        rpc.Method(
            f"{_SERVICE}/Checkpoint", [wire.CheckpointRequest()], wire.CheckpointResponse, statuses=_AWAY
        ),
        rpc.Method(f"{_SERVICE}/Stop", [wire.StopRequest()], wire.StopResponse, statuses=_AWAY),
    ]
