"""What a benchmark prints for programs."""

from __future__ import annotations

import json
import math
import sys

import pytest

from benchmarks import harness


def test_the_last_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures that are no numbers are in the table for people alone."""
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    harness.run("mine", lambda _quick: {"one": 1.0, "never": math.inf, "none": math.nan})
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["figures"] == {"one": 1.0}
    assert "never" in told.err and "none" in told.err
