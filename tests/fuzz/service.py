"""The reward service as a process of its own, with a tiny random model and rules: what the fuzzers ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
_RULES = {"mood": "sentiment", "words": "regex:pattern=[a-z]+", "length": "length:target=40"}
_REQUESTS = re.compile(r'^trimtab_http_requests_total\{[^}]*status="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)
MODELS = ("tiny", *_RULES)


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: where it listens, its process, its log."""

    endpoints: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def memory_mib(self) -> float:
        """Resident memory of it and its workers, MiB."""
        whole = psutil.Process(self.process.pid)
        return float(sum(part.memory_info().rss for part in [whole, *whole.children(recursive=True)])) / (
            1 << 20
        )

    def cpu_seconds(self) -> float:
        """Processor time of it and its workers so far."""
        whole = psutil.Process(self.process.pid)
        parts = [part.cpu_times() for part in [whole, *whole.children(recursive=True)]]
        return float(sum(times.user + times.system for times in parts))

    def http_requests(self) -> dict[str, int]:
        """HTTP requests answered so far, by status, as its own metrics count them."""
        with urllib.request.urlopen(f"http://{self.endpoints['metrics']}/metrics", timeout=60) as page:
            text = page.read().decode()
        found: Counter[str] = Counter()
        for status, count in _REQUESTS.findall(text):
            found[status] += int(float(count))
        return dict(found)

    def log_lines(self, level: str) -> list[dict[str, Any]]:
        """Its log lines of that level."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("level") == level]

    def check_alive(self) -> None:
        """AssertionError where it has ended, with the end of its log."""
        code = self.process.poll()
        assert code is None, f"the service ended with {code}: {self.log.read_text(errors='replace')[-2000:]}"


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Service]:
    """A service with the models `tiny` (a causal model with a scalar head), `mood`, `words` and `length` (rules).

    settings: further fields of its configuration, by --set names with `__` for a dot.
    """
    from tests.fakes.tiny_models import make_tiny_reward_model

    model = make_tiny_reward_model(folder / "tiny", pooling="last", seed=1)
    endpoints = folder / "endpoints.json"
    endpoints.unlink(missing_ok=True)
    config = folder / "reward.toml"
    config.write_text(
        f"endpoints_file = {json.dumps(str(endpoints))}\nthreads = 1\ndtype = 'float32'\ndevice = 'cpu'\n"
        f"[[models]]\nname = 'tiny'\npath = {json.dumps(str(model))}\n"
        + "".join(f"[[models]]\nname = '{name}'\nrule = '{rule}'\n" for name, rule in _RULES.items())
    )
    overrides = [f"--set={name.replace('__', '.')}={value}" for name, value in settings.items()]
    log = folder / "service.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.reward", "--config", str(config), *overrides],
            stderr=stream,
            stdout=stream,
            cwd=ROOT,
        )
    try:
        yield Service(_ready(process, endpoints, log), process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, str]:
    """Its endpoints, once health says SERVING."""
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        assert process.poll() is None, f"the service did not start: {log.read_text(errors='replace')[-2000:]}"
        if file.is_file():
            endpoints: dict[str, str] = json.loads(file.read_text())
            if _serving(endpoints["health"]):
                return endpoints
        time.sleep(0.05)
    raise AssertionError(f"the service was not ready within {START_SECONDS:g} s")


def _serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
