"""TRL's GRPOTrainer, in its own environment, rewarded by our service: over the adapter and over plain HTTP."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.reward_process import RewardProcess, until
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "trl" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="make peer-trl first"),
]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RewardProcess]:
    """A tiny random reward model and a rule that reads a column of the data set."""
    folder = make_tiny_reward_model(tmp_path / "rm")
    process = RewardProcess(
        tmp_path,
        f"""
        dtype = "float32"
        threads = 1
        [[models]]
        name = "hh"
        path = "{folder}"
        [[models]]
        name = "answer"
        rule = "rouge:column=answer"
        """,
    )
    process.start()
    yield process
    process.kill()


class Training:
    """The script at work, and what it said so far."""

    def __init__(self, folder: Path, way: str, service: RewardProcess) -> None:
        self._out, self._err = folder / "training.out", folder / "training.err"
        model = make_tiny_causal(folder / "policy")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(str(PYTHON), str(Path(__file__).with_name("train_with_trl.py"))),
                    *(way, str(model), service.grpc, service.http, str(folder / "out")),
                ],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def said(self, field: str) -> list[Any]:
        """Every value of a field that the script has written."""
        whole, _, _ = self._out.read_text().rpartition("\n")
        # The trainer's own prints stand between ours, as Python writes dictionaries.
        lines = [line for line in whole.splitlines() if line.startswith('{"')]
        return [entry[field] for line in lines if field in (entry := json.loads(line))]

    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._err.read_text()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition. AssertionError with what the script wrote where it ended before."""

        def holds() -> bool:
            ended = self.process.poll() is not None
            if condition():
                return True
            assert not ended, self.errors()[-3000:]
            return False

        until(holds, seconds=400, what=what)

    def go_on(self) -> None:
        """Let it pass its pause."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


@pytest.mark.parametrize(("way", "names"), [("adapter", ["answer", "hh"]), ("http", ["http_reward"])])
def test_grpo_trains_through_a_killed_service(
    way: str, names: list[str], tmp_path: Path, service: RewardProcess
) -> None:
    """Five steps, the service killed after two and away when the third asks: a retry, and every reward a number."""
    with Training(tmp_path, way, service) as training:
        training.until(lambda: 2 in training.said("step"), "step 2")
        service.kill()
        training.go_on()
        training.until(lambda: "does not answer" in training.errors(), "the outage")
        assert training.said("step") == [1, 2]
        service.start()
        training.until(lambda: training.said("ended"), "the end")
        assert training.process.wait(60) == 0
    assert training.said("steps") == [5]
    assert training.said("moved")[0] > 0
    assert training.said("names")[-1] == names
    rewards = [value for batch in training.said("rewards") for row in batch for value in row]
    assert len(rewards) == 5 * 4 * len(names)
    assert None not in rewards
    assert len(set(rewards)) > 5
    if way == "adapter":
        # The blocking one waited it out; the other was asked after it, with the service there again or nearly.
        assert 1 <= training.errors().count("does not answer") <= 2
        assert "answers again after" in training.errors()
    assert not list((tmp_path / "out").rglob("*.safetensors"))
