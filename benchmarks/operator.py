"""Measures the operator with 500 TrainingRuns on the API server of the tests, each in a process of its own.

    reconcile_cpu_ms     CPU of the operator's whole process per reconcile of an unchanged run, over full resyncs
    idle_writes          writes (to anything but the lease) during those resyncs
    change_p99_seconds   from a user's change of one run's spec to the changed Deployment, 99th percentile
    memory_mib           resident memory of the operator's process, its highest
    restart_writes       writes of a new process that finds everything as it should be
    restart_seconds      from its start until it has looked at every run

Deployments and Jobs have the status of ones that run; there are no pods and nothing is scraped. `--quick`: 50 runs.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks import harness
from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.connect import connect
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.crds import crds
from orchestrator.local.ports import free_ports

RUNS, QUICK_RUNS = 500, 50
CHANGES, QUICK_CHANGES = 200, 40
RESYNC_SECONDS = 20.0
QUIET_SECONDS = 5.0
NAMESPACE = "default"
RUN: dict[str, Any] = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"namespace": NAMESPACE},
    "spec": {
        "model": {"path": "org/model"},
        "data": {"prompts": "/storage/prompts.jsonl"},
        "rewardModel": "rule:sentiment",
        "storage": {"pvc": {"claimName": "runs"}},
    },
}


def serve(kubeconfig: Path, orders: Connection) -> None:
    """The API server's process: until told to end; `count` answers with the writes since the last time."""
    from tests.fakes.kube import KubeServer

    with KubeServer() as server:
        server.load(crds())
        server.controllers.start()
        server.kubeconfig(kubeconfig)
        orders.send("ready")
        while orders.recv() == "count":
            server.settle()
            writes = [call for call in server.calls.writes if not call.resource.startswith("leases")]
            orders.send(len(writes))
            server.calls.reset()


class Program:
    """`trimtab operator` as a process."""

    def __init__(self, kubeconfig: Path) -> None:
        self.health, self.metrics = free_ports(2)
        settings = {
            "host": "127.0.0.1",
            "health_port": self.health,
            "metrics_port": self.metrics,
            "lease.namespace": NAMESPACE,
            "resync_seconds": RESYNC_SECONDS,
            "scaling_seconds": 600,
            "log.level": "warning",
        }
        flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "orchestrator", "operator", "--kubeconfig", str(kubeconfig), *flags]
        self.started = time.monotonic()
        self._process = subprocess.Popen(command)  # noqa: S603 our own program
        self._ps = psutil.Process(self._process.pid)
        self.highest = 0.0

    def cpu_seconds(self) -> float:
        """Used so far."""
        times = self._ps.cpu_times()
        self.highest = max(self.highest, self._ps.memory_info().rss / 2**20)
        return float(times.user + times.system)

    def reconciles(self, outcome: str = "done") -> float:
        """Of runs, so far."""
        pattern = rf'trimtab_operator_reconciles_total{{controller="runs",outcome="{outcome}"}} (\S+)'
        found = re.search(pattern, self._page())
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(15)

    def _page(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""


def wait_for(question: Callable[[], object], seconds: float, pause: float = 0.5) -> None:
    """Until it is so. Raises TimeoutError."""
    ends = time.monotonic() + seconds
    while not question():
        if time.monotonic() > ends:
            raise TimeoutError("the operator did not come to rest")
        time.sleep(pause)


@contextmanager
def cluster() -> Iterator[tuple[Path, Callable[[], int]]]:
    """A server in a process of its own: its kubeconfig, and a count of writes since the last count."""
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "config"
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(kubeconfig, theirs))
        process.start()
        ours.recv()

        def count() -> int:
            ours.send("count")
            return int(ours.recv())

        try:
            yield kubeconfig, count
        finally:
            ours.send("end")
            process.join(15)


def resyncs(program: Program, runs: int) -> float:
    """CPU milliseconds of a reconcile, over at least two full resyncs in which nothing changes."""
    began, before = program.cpu_seconds(), program.reconciles()
    # Looking at the page costs the process more than a reconcile does.
    wait_for(lambda: program.reconciles() - before >= 2 * runs, 10 * RESYNC_SECONDS, 5)
    return 1000 * (program.cpu_seconds() - began) / (program.reconciles() - before)


def change_seconds(api: Api, names: list[str], changes: int) -> list[float]:
    """From each change to the Deployment that has it."""
    taken = []
    for number in range(changes):
        name = names[number * 7919 % len(names)]
        place = Ref("Deployment", NAMESPACE, f"{name}-policy")
        count = 2 + number
        began = time.perf_counter()
        patch = {"spec": {"roles": {"policy": {"replicas": count}}}}
        api.merge(Ref("TrainingRun", NAMESPACE, name), patch, "user")
        while api.get(place)["spec"]["replicas"] != count:
            time.sleep(0.002)
        taken.append(time.perf_counter() - began)
    return taken


def measure(quick: bool) -> harness.Figures:
    """All figures."""
    runs, changes = (QUICK_RUNS, QUICK_CHANGES) if quick else (RUNS, CHANGES)
    names = [f"run-{number:03d}" for number in range(runs)]
    with cluster() as (kubeconfig, count):
        api = Api(connect(kubeconfig))
        program = Program(kubeconfig)
        for name in names:
            item = copy.deepcopy(RUN)
            item["metadata"]["name"] = name
            api.create(item, "user")
        wait_for(lambda: len(api.list("Job", NAMESPACE).items) == runs, 600, 2)
        # No write between two looks that are this far apart.
        wait_for(lambda: count() == 0, 300, QUIET_SECONDS)
        harness.say(f"{runs} runs are there; {os.getloadavg()[0]:.1f} load")
        cpu = resyncs(program, runs)
        idle = count()
        taken = sorted(change_seconds(api, names, changes))
        # Whatever the last change brings about is written before the end: what is counted next is needless.
        wait_for(lambda: count() == 0, 60, QUIET_SECONDS)
        program.cpu_seconds()
        program.stop()
        count()
        again = Program(kubeconfig)
        wait_for(lambda: again.reconciles() >= runs, 300, 0.2)
        restart = time.monotonic() - again.started
        again.cpu_seconds()
        restart_writes = count()
        again.stop()
        return {
            "reconcile_cpu_ms": cpu,
            "idle_writes": idle,
            "change_p50_seconds": statistics.median(taken),
            "change_p99_seconds": taken[min(len(taken) - 1, int(0.99 * len(taken)))],
            "memory_mib": max(program.highest, again.highest),
            "restart_writes": restart_writes,
            "restart_seconds": restart,
            "runs": runs,
        }


if __name__ == "__main__":
    harness.run(
        "operator",
        measure,
        {
            "reconcile_cpu_ms": harness.at_most(5),
            "idle_writes": harness.at_most(0),
            "change_p99_seconds": harness.at_most(1),
            "memory_mib": harness.at_most(512),
            "restart_writes": harness.at_most(0),
        },
    )
