"""The README's smallest run is one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from orchestrator.local.services import check_scored
from services.common.spec.run import RunSpec

ROOT = Path(__file__).parents[4]


def test_the_smallest_run_is_whole() -> None:
    """It is read as a run, something scores it, and its prompts are there."""
    found = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    spec = RunSpec.model_validate(tomllib.loads(found.group(1)))
    check_scored(spec)
    assert (ROOT / spec.data.prompts).is_file()
