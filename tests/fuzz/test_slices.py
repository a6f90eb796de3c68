"""A short, seeded part of `make fuzz` for every surface but those that have one of their own (test_score.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import driver
from tests.fuzz.surfaces import NAMES, find

# Inputs, as many as take about two seconds; and how many different outcomes they must have, so that they do get far.
SLICES = {
    "config": (1_500, 12),
    "datasets": (1_500, 15),
    "deltas": (600, 2),
    "entries": (2_000, 5),
    "learner": (60, 5),
    "lines": (1_500, 10),
    "manifests": (2_500, 4),
    "model_files": (25, 4),
    "pages": (120, 12),
    "policy": (120, 4),
    "preference": (120, 8),
    "reference": (120, 3),
    "reward": (120, 8),
    "weights": (200, 5),
}
ELSEWHERE = {"reward_score", "reward_http"}


def test_no_surface_is_forgotten() -> None:
    """Each has a slice here, or a test of its own."""
    assert set(SLICES) | ELSEWHERE == set(NAMES)


@pytest.mark.parametrize("name", SLICES)
def test_a_slice(name: str, tmp_path: Path) -> None:
    """Documented answers alone, sound inputs are answered as before, and the inputs reach most kinds of answer."""
    most, kinds = SLICES[name]
    with find(name)(tmp_path) as surface:
        account = driver.run(surface, seed=1, cpu_seconds=100, most=most)
    assert not account.findings, "\n".join(one.trace for one in account.findings.values())
    assert account.inputs == most
    assert len(account.outcomes) >= kinds, account.outcomes
