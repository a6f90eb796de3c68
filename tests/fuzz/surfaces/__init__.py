"""One module a surface; NAMES is the list of them. Imported late: each brings what it needs."""

from __future__ import annotations

import importlib

from tests.fuzz.surface import Opened

NAMES = (
    "config",
    "datasets",
    "deltas",
    "entries",
    "learner",
    "lines",
    "manifests",
    "model_files",
    "pages",
    "policy",
    "preference",
    "reference",
    "reward",
    "reward_http",
    "reward_score",
    "weights",
)


def find(name: str) -> Opened:
    """What opens the surface of that name."""
    opened: Opened = importlib.import_module(f"tests.fuzz.surfaces.{name}").opened
    return opened
