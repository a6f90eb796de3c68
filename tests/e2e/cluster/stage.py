"""Everything that the steps of the test share, and how it is swept when one fails."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.e2e.cluster import objects
from tests.e2e.cluster.eyes import Eyes, Teller
from tests.e2e.cluster.nodes import Nodes
from tests.e2e.cluster.objects import RUN
from tests.e2e.cluster.plane import Plane, Trouble

CRDS = ("trainingruns.trimtab.dev", "rewardmodels.trimtab.dev")


class Stage:
    """Everything that the steps share."""

    def __init__(self, plane: Plane, folder: Path) -> None:
        self.tag = f"e2e-{uuid.uuid4().hex[:5]}"
        self.plane, self.folder, self.tell = plane, folder, Teller()
        self.system, self.namespace = f"{self.tag}-system", f"{self.tag}-runs"
        self.nodes = Nodes(plane, folder / "nodes", objects.plans(self.tag))
        self.eyes = Eyes(plane, self.namespace, folder / "runs")
        self.before_the_run: set[str] = set()
        """Objects in the run's namespace: what every namespace has, and the release's rights."""
        self.had_crds = all(self.find("crd", name) for name in CRDS)

    def find(self, *arguments: str) -> str:
        """The names of what there is."""
        return self.plane.kubectl("get", *arguments, "--ignore-not-found", "-o", "name").strip()


def sweep(stage: Stage) -> None:
    """What a failed step has left; after a good test there is nothing."""
    plane = stage.plane
    for arguments in (
        ["trun", RUN, "-n", stage.namespace, "--timeout=60s"],
        ["namespace", stage.system, stage.namespace, "--timeout=90s"],
        ["pv", f"{stage.tag}-runs", f"{stage.tag}-queue", "--timeout=30s"],
    ):
        try:
            plane.kubectl("delete", *arguments, "--ignore-not-found")
        except Trouble as trouble:
            print(f"sweep: {trouble}")
    stage.nodes.stop()
