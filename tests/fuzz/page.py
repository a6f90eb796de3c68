"""The fuzzing part of docs/reliability.md, from tests/fuzz/report.json and fixed.json. tests/chaos/page.py calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fuzz.report import REPORT

FIXED = Path(__file__).with_name("fixed.json")
_HEAD = """
## Bad input

`make fuzz` ([fuzz](../tests/fuzz/README.md)): inputs drawn from a seed are handed to each surface for so much
processor time; anything but a documented answer is a finding. Fixed: what fuzzing found while it was built and run,
most with a test in `tests/fuzz/test_findings.py`; found: what the last whole run found on top of that.

| surface | inputs | CPU-minutes | accepted | refused | most memory for one input, MiB | growth, MiB | fixed | found |
|---|---|---|---|---|---|---|---|---|
"""
_ACCEPTED = ("accepted", "OK", "200", "303", "204")


def fuzz_table(report: Path = REPORT, fixed: Path = FIXED) -> str:
    """The section; empty where no run was kept."""
    if not report.exists():
        return ""
    runs: dict[str, Any] = json.loads(report.read_text())
    told: dict[str, list[str]] = json.loads(fixed.read_text())
    rows = [_row(name, run, told.get(name, [])) for name, run in sorted(runs.items())]
    total = sum(run["cpu_minutes"] for run in runs.values())
    inputs = sum(run["inputs"] for run in runs.values())
    listed = [f"- {name}: {what}" for name, found in sorted(told.items()) for what in found]
    return (
        _HEAD
        + "\n".join(rows)
        + f"\n\n{inputs:,} inputs in {total:.1f} minutes of processor time. What was fixed:\n\n"
        + "\n".join(listed)
        + "\n"
    )


def _row(name: str, run: dict[str, Any], fixed: list[str]) -> str:
    accepted = sum(count for outcome, count in run["outcomes"].items() if outcome.endswith(_ACCEPTED))
    refused = sum(run["outcomes"].values()) - accepted
    cells = [
        f"`{name}`",
        f"{run['inputs']:,}",
        f"{run['cpu_minutes']:g}",
        f"{accepted:,}",
        f"{refused:,}",
        f"{run['largest_input_mib']:.0f}",
        f"{run['growth_mib']:.0f}",
        str(len(fixed)),
        str(len(run["findings"])),
    ]
    return f"| {' | '.join(cells)} |"
