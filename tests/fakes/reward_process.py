"""The reward service as a process of its own, on ports that it keeps over a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trimtab import RewardClient, TrimtabClientError

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], *, seconds: float = 60, what: str = "it") -> None:
    """Wait for a condition, with a bound."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


class RewardProcess:
    """Started with a configuration in TOML; `kill` is SIGKILL, `start` again comes back on the same ports."""

    def __init__(self, folder: Path, config: str, *, key: str = "") -> None:
        self._key = key
        self._folder = folder
        self._config = folder / "reward.toml"
        self._config.write_text(config, encoding="utf-8")
        self._endpoints = folder / "endpoints.json"
        self.log = folder / "reward.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc = self.http = ""

    def start(self) -> None:
        """Start, and wait until it answers."""
        ports = [
            f"server.{name}={address.rpartition(':')[2] or 0}"
            for name, address in (("port", self.grpc), ("http_port", self.http))
        ]
        flags = [*ports, f"endpoints_file={self._endpoints}"]
        self._endpoints.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.reward", "--config", str(self._config)),
                    *(word for flag in flags for word in ("--set", flag)),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        until(self._answers, what="the reward service's start")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the reward service ended: {self.log.read_text(encoding='utf-8')[-2000:]}")
        if not self._endpoints.exists():
            return False
        found = json.loads(self._endpoints.read_text(encoding="utf-8"))
        self.grpc, self.http = found["grpc"], found.get("http", "")
        try:
            with RewardClient(self.grpc, key=self._key, attempts=1, timeout_seconds=5) as client:
                client.list_models()
        except TrimtabClientError:
            return False
        return True

    def kill(self) -> None:
        """As the kernel does when memory is out: no word to anyone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator does."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)
