"""What several processes of a learner are told by their surroundings, and how their end is told."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from services.common.errors import ConfigError
from services.learner.config import LearnerConfig
from services.learner.distributed.group import Place, TorchGroup
from services.learner.distributed.joining import device_of, join
from services.learner.distributed.launch import told

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def config(processes: int = 2, **run: Any) -> LearnerConfig:
    tables = {"model": {"path": "m", **run.pop("model", {})}, "data": {"prompts": "p.jsonl"}, **run}
    return LearnerConfig.model_validate({"out": Path("o"), "processes": processes, "run": tables})


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"algorithm": {"kind": "trpo"}}, "trpo trains in one process"),
        ({"algorithm": {"kind": "dpo"}}, "dpo trains in one process"),
        ({"optimiser": {"weight_average": 0.99}}, "kept by one process alone"),
    ],
)
def test_what_needs_one_process_is_refused(run: dict[str, Any], why: str) -> None:
    """When the configuration is read, in one line; for one process the same run is accepted."""
    with pytest.raises(ValidationError, match=f"processes = 2: .*{why}"):
        config(**run)
    alone = config(1, **run)
    with pytest.raises(ConfigError, match=why):
        join(alone, Place(0, 2, 0, 2))


def test_a_number_that_is_not_torchruns_is_refused() -> None:
    """processes = 2 in a group of four is a mistake, told before anybody is met."""
    with pytest.raises(ConfigError, match="processes = 2, but torchrun started 4"):
        join(config(2), Place(0, 4, 0, 4))


def test_places_come_from_torchruns_variables() -> None:
    """All four of them; one that is missing is named."""
    assert Place.of_environment(TORCHRUN) == Place(rank=3, size=4, local_rank=1, local_size=2)
    with pytest.raises(ConfigError, match="LOCAL_RANK"):
        Place.of_environment({name: TORCHRUN[name] for name in TORCHRUN if name != "LOCAL_RANK"})


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its place on the node; one GPU for all is refused, and so are fewer than there are processes."""
    place = Place(3, 4, 1, 2)
    assert device_of("cpu", place) == torch.device("cpu")
    with pytest.raises(ConfigError, match="cuda:0"):
        device_of("cuda:0", place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto", place) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on this node need as many GPUs, it has 1"):
        device_of("cuda", place)


def failed(**codes: int) -> Any:
    """What torchrun says of processes by rank: their exit codes, negative for a signal."""
    failures = {
        int(rank[1:]): SimpleNamespace(
            exitcode=code, signal_name=lambda code=code: signal.Signals(-code).name
        )
        for rank, code in codes.items()
    }
    return SimpleNamespace(failures=failures)


def test_how_a_group_ended_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A process that a signal ended is spoken for; one that ended by itself has spoken, and its status counts."""
    assert told(failed(r0=1, r2=-9, r3=-15)) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "process 2 was ended by SIGKILL" in line
    assert told(failed(r0=2, r1=1)) == 2
    assert told(failed(r1=1)) == 1
    assert capsys.readouterr().err == ""


def test_an_error_of_ones_own_is_not_taken_for_a_lost_process() -> None:
    """Only what a connection says means that another process is gone."""
    group = TorchGroup.__new__(TorchGroup)
    group.place = Place(0, 2, 0, 2)
    with pytest.raises(RuntimeError, match="shapes"), group.unbroken():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(Exception, match="one of the learner's 2 processes is gone"), group.unbroken():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:2310")
