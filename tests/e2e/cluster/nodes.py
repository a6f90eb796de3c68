"""Starts and ends the nodes of a test, each a process of its own. Knows no run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.cluster.plane import ROOT, Plane, Trouble, until

LAUNCH = ROOT / "orchestrator" / "local" / "launch.py"
POOL = "trimtab.dev/pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """One node. A pool's nodes carry its label and, unless it is open, its taint."""

    name: str
    pool: str
    gpus: int = 0
    tainted: bool = True

    def flags(self) -> list[str]:
        """Of tests.e2e.node."""
        taint = ["--taint", f"{POOL}={self.pool}:NoSchedule"] if self.tainted else []
        # The scheduler counts; this machine's own cores are not what limits a test of tiny things.
        size = ["--capacity", "cpu=8", "--capacity", "memory=32Gi"]
        return [
            "--name",
            self.name,
            "--label",
            f"{POOL}={self.pool}",
            "--gpus",
            str(self.gpus),
            *taint,
            *size,
        ]


class Nodes:
    """Of one test, with their folder."""

    def __init__(self, plane: Plane, folder: Path, plans: Sequence[NodePlan]) -> None:
        self.folder, self.plans = folder, plans
        self._plane = plane
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """All of them; returns once the control plane has them Ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
        for number, plan in enumerate(self.plans):
            command = [
                # Nodes end with the test, however that ends.
                sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), sys.executable,
                "-m", "tests.e2e.node", "--kubeconfig", str(self._plane.kubeconfig),
                "--network", f"127.16.{number}.0/24", "--folder", str(self.folder / plan.name), *plan.flags(),
            ]  # fmt: skip
            with self.log(plan.name).open("ab") as log:
                self._processes[plan.name] = subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        until("all nodes are Ready", self._all_ready, 60)

    def stop(self) -> None:
        """SIGTERM to all; Trouble where one does not end well."""
        for process in self._processes.values():
            process.terminate()
        bad = []
        for name, process in self._processes.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode != 0:
                bad.append(f"{name} (exit status {process.returncode})")
        self._processes.clear()
        if bad:
            raise Trouble(f"nodes that did not end well: {', '.join(bad)}")

    def log(self, name: str) -> Path:
        """What a node itself says."""
        return self.folder / f"{name}.log"

    def _all_ready(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise Trouble(f"{self.log(name).read_text().strip()[-500:]}")
        ready = {
            item["metadata"]["name"]
            for item in self._plane.items("nodes")
            if any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in item["status"].get("conditions", ())
            )
            and not any(
                taint["key"].startswith("node.kubernetes.io/") for taint in item["spec"].get("taints", ())
            )
        }
        return {plan.name for plan in self.plans} <= ready


def processes_of(pod: str) -> list[psutil.Process]:
    """The processes of a pod, by the host name that each is given; the program itself first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOSTNAME") == pod and "enter.py" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda one: one.pid)
