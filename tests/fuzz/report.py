"""tests/fuzz/report.json: what whole runs came to, by surface. Knows no surface and no page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fuzz.driver import Account

REPORT = Path(__file__).with_name("report.json")


def line(account: Account) -> str:
    """For people."""
    outcomes = ", ".join(f"{name} {count}" for name, count in account.outcomes.most_common(12))
    return (
        f"{account.inputs} inputs in {account.cpu_seconds:.0f} CPU s, {len(account.findings)} findings, "
        f"peak {account.peak_mib:.0f} MiB, growth {account.growth_mib:.0f} MiB; {outcomes}"
    )


def add(name: str, seed: int, account: Account, file: Path = REPORT) -> None:
    """Put a run's account in the place of the surface's last one."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    kept[name] = {
        "seed": seed,
        "inputs": account.inputs,
        "cpu_minutes": round(account.cpu_seconds / 60, 1),
        "findings": [finding.what for finding in account.findings.values()],
        "outcomes": dict(sorted(account.outcomes.items())),
        "largest_input_mib": round(account.peak_mib, 1),
        "growth_mib": round(account.growth_mib, 1),
    }
    file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
