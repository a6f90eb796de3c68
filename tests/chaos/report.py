"""tests/chaos/report.json: one entry a seed, a later run of a seed in place of an earlier one. Knows no run."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.faults import Fault
from tests.chaos.run import Outcome, Recovery

REPORT = Path(__file__).parent / "report.json"


def entry(minutes: float, faults: Sequence[Fault], outcome: Outcome) -> dict[str, Any]:
    """Of one run. recoveries: by kind and target, times, what brought it about, median and worst seconds."""
    found: dict[str, list[Recovery]] = defaultdict(list)
    for one in outcome.recoveries:
        found[f"{one.fault.kind} {one.fault.target}"].append(one)
    return {
        "minutes": minutes,
        "faults": len(faults),
        "faults_by_kind": dict(sorted(Counter(fault.kind for fault in faults).items())),
        "wrong": outcome.wrong,
        "figures": {name: round(value, 4) for name, value in outcome.figures.items()},
        "recoveries": {kind: _recovered(all_) for kind, all_ in sorted(found.items())},
    }


def _recovered(recoveries: Sequence[Recovery]) -> dict[str, Any]:
    seconds = [one.seconds for one in recoveries]
    return {
        "times": len(seconds),
        "median_seconds": round(median(seconds), 2),
        "worst_seconds": round(max(seconds), 2),
        "by": dict(Counter(one.by for one in recoveries).most_common()),
    }


def add(report: Path, seed: int, run: Mapping[str, Any]) -> None:
    """Put a run's entry in its place; what other seeds came to stays."""
    runs = {**report_of(report), str(seed): run}
    ordered = dict(sorted(runs.items(), key=lambda item: int(item[0])))
    aside = report.with_name(f".{report.name}.writing")
    aside.write_text(json.dumps(ordered, indent=1) + "\n")
    aside.replace(report)


def report_of(file: Path = REPORT) -> dict[str, Any]:
    """What runs have added up to; nothing where none was kept."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found
