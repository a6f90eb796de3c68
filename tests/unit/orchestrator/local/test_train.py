"""What `trimtab train --in-process` does around the run itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.local import in_process, train
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from services.common.errors import AlreadyExists
from services.common.spec.run import RunSpec

RUN = 'reward_model = "rule:length"\nsteps = 3\n[model]\npath = "m"\n[data]\nprompts = "p.jsonl"\n'


def test_a_run_in_one_process_has_its_folder_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains it is seen to live there, and nobody resumes or empties the folder; after that they may."""
    refused: list[str] = []

    def training(spec: RunSpec, out: Path) -> int:
        (out / "precious").touch()
        assert RunLayout(out).supervisor_pid() == os.getpid()
        for how in ("resume", "overwrite"):
            with pytest.raises(AlreadyExists, match="a run is going on"):
                RunLayout.prepare(out, **{how: True})
            refused.append(how)
        assert (out / "precious").exists()
        return 0

    monkeypatch.setattr(in_process, "run_in_process", training)
    (tmp_path / "run.toml").write_text(RUN)
    out = tmp_path / "run"
    assert train.in_process(tmp_path / "run.toml", RunOptions(out=out)) == 0
    assert refused == ["resume", "overwrite"]
    RunLayout.prepare(out, overwrite=True)
    assert not (out / "precious").exists()
