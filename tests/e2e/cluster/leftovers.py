"""What is left of a test: in its namespace, in the cluster, among this machine's processes. Removes nothing."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.e2e.cluster.objects import RUN
from tests.e2e.cluster.plane import Plane, holds


def objects_in(plane: Plane, namespace: str) -> set[str]:
    """All objects of a namespace but events."""
    kinds = plane.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith(("events", "pods.metrics"))]
    found = plane.kubectl("get", ",".join(kinds), "-n", namespace, "--ignore-not-found", "-o", "name")
    return set(found.split())


def cluster_objects(plane: Plane) -> list[str]:
    """All objects that belong to no namespace."""
    kinds = plane.kubectl("api-resources", "--verbs=list", "--namespaced=false", "-o", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith("componentstatuses")]
    return plane.kubectl("get", ",".join(kinds), "--ignore-not-found", "-o", "name").split()


def processes(folder: Path) -> list[str]:
    """Processes that were started for the test's nodes or pods."""

    def found() -> list[str]:
        left = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                where = process.environ().get("HOSTNAME", "")
            except psutil.Error:
                continue
            if str(folder) in words or where.startswith((f"{RUN}-", "trimtab-operator-")):
                left.append(f"{process.pid} {words[:100]}")
        return left

    holds(lambda: not found(), 5)
    return found()
