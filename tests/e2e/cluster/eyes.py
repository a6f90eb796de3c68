"""What the test sees of a run: its figures, pods, status; and what it tells people. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from tests.e2e.cluster.nodes import Nodes
from tests.e2e.cluster.objects import RUN
from tests.e2e.cluster.plane import Plane, Trouble

Object = dict[str, Any]


class Teller:
    """One line for each step: what was seen, how long it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """What is put into the list is told at the end."""
        began, seen = time.monotonic(), list[str]()
        yield seen
        took = time.monotonic() - began
        print(
            f"[{time.monotonic() - self._began:5.0f} s] {name}: {'; '.join(seen)} ({took:.1f} s)", flush=True
        )


class Eyes:
    """On one run."""

    def __init__(self, plane: Plane, namespace: str, files: Path) -> None:
        self._plane, self.namespace, self._files = plane, namespace, files

    @property
    def run(self) -> Object:
        """The TrainingRun."""
        return self._plane.get("trun", RUN, "-n", self.namespace)

    @property
    def status(self) -> Object:
        """What the operator says of it."""
        return dict(self.run.get("status") or {})

    def condition(self, kind: str) -> Object:
        """One of its conditions; empty where it has none."""
        return next((one for one in self.status.get("conditions") or () if one["type"] == kind), {})

    @property
    def folder(self) -> Path:
        """The run's folder on the volume."""
        return self._files / "runs" / f"{RUN}-{self.run['metadata']['uid'][:8]}"

    def rows(self) -> list[dict[str, float]]:
        """The learner's figures, a row a step."""
        found = sorted((self._files / "runs").glob(f"{RUN}-*/metrics.jsonl"))
        return (
            [json.loads(line) for line in found[0].read_text().splitlines() if line.endswith("}")]
            if found
            else []
        )

    @property
    def step(self) -> int:
        """The last one that is written."""
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def pods(self, service: str = "") -> list[Object]:
        """Of the run, or of one service."""
        selector = f"trimtab.dev/run={RUN}" + (f",trimtab.dev/service={service}" if service else "")
        return self._plane.items("pods", "-n", self.namespace, "-l", selector)

    def ready(self, service: str) -> list[Object]:
        """Those that serve and are not about to go."""
        return [pod for pod in self.pods(service) if is_ready(pod)]

    def uids(self) -> dict[str, set[str]]:
        """Pods by service."""
        found: dict[str, set[str]] = {}
        for pod in self.pods():
            found.setdefault(pod["metadata"]["labels"]["trimtab.dev/service"], set()).add(
                pod["metadata"]["uid"]
            )
        return found

    def groups_done(self, pod: Object, port: int) -> float:
        """Groups that left a worker's stage well, by its own metrics."""
        page = httpx.get(f"http://{pod['status']['podIP']}:{port}/metrics", timeout=5).text
        lines = [line for line in page.splitlines() if line.startswith("trimtab_stage_groups_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'outcome="done"' in line)


def is_ready(pod: Object) -> bool:
    """Whether a pod serves."""
    conditions = pod["status"].get("conditions") or ()
    serves = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return serves and not pod["metadata"].get("deletionTimestamp")


def accounting(row: dict[str, float]) -> tuple[str, bool]:
    """A row's groups in words, and whether they add up."""
    count = {
        name: int(row[f"rollouts/{name}"]) for name in ("admitted", "trained", "stale", "failed", "in_flight")
    }
    parts = " + ".join(
        f"{count[name]} {name.replace('_', ' ')}" for name in ("trained", "stale", "failed", "in_flight")
    )
    return f"{count['admitted']} groups admitted = {parts}", count["admitted"] == sum(count.values()) - count[
        "admitted"
    ]


def rise(rows: list[dict[str, float]], steps: int = 5) -> tuple[float, float]:
    """Mean score of the first and of the last steps."""
    scores = [row["objective/scores"] for row in rows]
    return (mean(scores[:steps]), mean(scores[-steps:])) if len(scores) >= 2 * steps else (0.0, 0.0)


def tell_trouble(plane: Plane, namespaces: list[str], nodes: Nodes, lines: int = 8) -> None:
    """The pods' last words and the latest events, for whoever looks for the reason."""
    for plan in nodes.plans:
        if nodes.log(plan.name).exists():
            print(f"--- node {plan.name}\n{_tail(nodes.log(plan.name), 5)}")
        for log in sorted((nodes.folder / plan.name).glob("pods/*/logs/*/*.log")):
            print(f"--- {plan.name}: {log.parts[-4]} {log.parts[-2]}\n{_tail(log, lines)}")
    for namespace in namespaces:
        for what in (["pods", "-o", "wide"], ["events", "--sort-by=.lastTimestamp"]):
            try:
                told = plane.kubectl("get", *what, "-n", namespace).splitlines()
            except Trouble as trouble:
                told = [str(trouble)]
            # No slice of endpoints can hold a loopback address: nodes answer names by themselves.
            kept = [line for line in told if "FailedToUpdateEndpoint" not in line]
            print(f"--- {' '.join(what[:1])} in {namespace}\n" + "\n".join(kept[-25:]))


def _tail(path: Path, lines: int) -> str:
    return "\n".join(line[:300] for line in path.read_text(errors="replace").splitlines()[-lines:])
