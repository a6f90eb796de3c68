"""What NOTES.txt of the chart tells people to write into a run is taken by the operator."""

from __future__ import annotations

import re

import yaml

from orchestrator.cluster.control.course import check_supported
from tests.unit.deploy.monitoring import CHART
from tests.unit.orchestrator.cluster.objects import run


def test_the_stages_that_it_names_are_carried_out() -> None:
    """A line that is copied as it stands gives a run that is valid and supported."""
    notes = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    [line] = re.findall(r"^  (stages: .*)$", notes, re.MULTILINE)
    asked = run(**yaml.safe_load(line))
    check_supported(asked)
    assert asked.spec.run_spec("helpful")
