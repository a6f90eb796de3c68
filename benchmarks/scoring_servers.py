"""Owns the servers that benchmarks.scoring compares: starts them, holds them still, ends them. Measures nothing.

    start ──▶ loading ──▶ answers ──▶ held (SIGSTOP: no processor time) ⇄ at work ──▶ ended

Held, because some of them poll while they have nothing to do, and would slow down whoever is being measured.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from benchmarks.peers.scalar_model import Settings
from benchmarks.scoring_load import CALL_SECONDS, MODEL, Plan, Seen, Text, to_json

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers"
START_SECONDS = 300.0
END_SECONDS = 20.0
# What their examples wait for a batch to fill; vLLM does not wait.
WAIT_MILLISECONDS = {"mosec": 10, "litserve": 50, "vllm": 0}


class PeerFailed(Exception):
    """A server that does not start or does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server. addresses: host:port for each way of asking it."""

    name: str
    process: subprocess.Popen[bytes]
    addresses: Mapping[str, str]
    log: Path

    def hold(self) -> None:
        """Take the processor away from it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Running within, held outside."""
        self.resume()
        try:
            yield
        finally:
            self.hold()

    def end(self) -> None:
        """SIGTERM, then SIGKILL for what is left of its processes."""
        processes = self._processes()
        self.resume()
        self.process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=END_SECONDS)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=END_SECONDS)
        self.process.wait()

    def last_words(self) -> str:
        """The end of its log, one line."""
        return " ".join(self.log.read_text(errors="replace").split())[-400:]

    def _processes(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


class Servers:
    """All servers of one run; `ended()` at the end of it, whatever happens."""

    def __init__(self, folder: Path, settings: Settings, probe: Text) -> None:
        self._folder = folder
        self._settings = settings
        self._probe = probe
        self._running: list[Server] = []

    def ours(self) -> Server:
        """`python -m services.reward` with the model, gRPC and HTTP, answering and then held."""
        endpoints, config = self._folder / "endpoints.json", self._folder / "reward.toml"
        config.write_text(
            f'endpoints_file = "{endpoints}"\n'
            f'threads = {self._settings.threads}\ndtype = "{self._settings.dtype}"\n'
            '[log]\nlevel = "warning"\n[server]\nhttp_port = 0\n'
            f'[[models]]\nname = "{MODEL}"\npath = "{self._settings.folder}"\n'
        )
        server = self._start(
            "trimtab", [sys.executable, "-m", "services.reward", "--config", str(config)], {}
        )
        self._until(server, endpoints.is_file)
        addresses = {
            way: address
            for way, address in json.loads(endpoints.read_text()).items()
            if way in ("grpc", "http") and address
        }
        server = replace(server, addresses=addresses)
        self._ready(server)
        return server

    def peer(self, name: str, batch_rows: int) -> Server:
        """A peer with batches of at most so many rows, answering and then held. PeerFailed where it does not."""
        port = free_port()
        settings = replace(self._settings, batch_rows=batch_rows, wait_milliseconds=WAIT_MILLISECONDS[name])
        command = [str(peer_python(name)), "-m", *self._program(name, str(port))]
        server = self._start(f"{name}-{batch_rows}", command, settings.environment())
        server = replace(server, addresses={name: f"127.0.0.1:{port}"})
        self._ready(server)
        return server

    def _program(self, name: str, port: str) -> list[str]:
        """Module and arguments of a peer. None gives up on a request before the load generator does."""
        if name == "mosec":
            patience = str(int(1000 * CALL_SECONDS))
            options = [
                "--address",
                "127.0.0.1",
                "--port",
                port,
                "--timeout",
                patience,
                "--log-level",
                "warning",
            ]
            return ["benchmarks.peers.mosec_server", *options]
        if name == "litserve":
            return ["benchmarks.peers.litserve_server", port]
        return ["benchmarks.peers.vllm_pooling", port, str(self._folder / "vllm-model")]

    def end(self, server: Server) -> None:
        """End one of them."""
        self._running = [other for other in self._running if other.process is not server.process]
        server.end()

    def end_all(self) -> None:
        """End what still runs."""
        for server in list(self._running):
            self.end(server)

    def _start(self, name: str, command: Sequence[str], more: Mapping[str, str]) -> Server:
        threads = str(self._settings.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **more}
        # A peer's own Python finds its own packages, and in this folder nothing but `benchmarks.peers`.
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)  # noqa: S603
        server = Server(name=name, process=process, addresses={}, log=log)
        self._running.append(server)
        return server

    def _ready(self, server: Server) -> None:
        """Until each way answers a text; then hold it."""
        for way, address in server.addresses.items():
            plan = Plan(way=way, address=address, texts=(self._probe,))
            self._until(server, partial(_answers, plan))
        server.hold()

    @staticmethod
    def _until(server: Server, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + START_SECONDS
        while not condition():
            if server.process.poll() is not None:
                raise PeerFailed(f"{server.name} ended while it started: {server.last_words()}")
            if time.monotonic() > ends:
                raise PeerFailed(
                    f"{server.name} is silent after {START_SECONDS:.0f} s: {server.last_words()}"
                )
            time.sleep(0.1)


def _answers(plan: Plan) -> bool:
    try:
        load(plan)
    except PeerFailed:
        return False
    return True


@contextmanager
def servers(settings: Settings, probe: Text) -> Iterator[Servers]:
    """A place for servers, and their end."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        running = Servers(Path(folder), settings, probe)
        try:
            yield running
        finally:
            running.end_all()


def load(plan: Plan) -> Seen:
    """What a load generator, a process of its own, saw. PeerFailed where a call failed."""
    command = [sys.executable, "-m", "benchmarks.scoring_load"]
    done = subprocess.run(  # noqa: S603 - our own
        command, input=to_json(plan), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PeerFailed((done.stderr.strip().splitlines() or ["the load generator failed"])[-1])
    return Seen(**json.loads(done.stdout))


def peer_python(name: str) -> Path:
    """The Python of a peer's environment."""
    return PEERS / name / "bin" / "python"


def installed(name: str) -> bool:
    """Whether `make peer-<name>` has been run to its end."""
    return (PEERS / name / ".ready").is_file()


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
