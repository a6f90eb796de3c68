"""What the demo makes of its run file and command line, before anything is started."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.demo import drive
from orchestrator.demo.options import DemoSpec
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView
from services.common.errors import UserError


def demo_of(folder: Path, options: RunOptions) -> drive._Demo:
    spec, view = options.load_spec(drive.RUN_FILE), LiveView(Console(file=io.StringIO()))
    return drive._Demo(RunLayout(folder), spec, DemoSpec(), drive.RUN_FILE, options, view)


def test_prompts_of_the_command_line_lie_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the run file lie beside it."""
    own = drive.RUN_FILE.with_name("prompts.jsonl").resolve()
    assert demo_of(tmp_path, RunOptions())._spec.data.prompts == str(own)
    rows = [{"prompt_id": split, "prompt": "Hello", "split": split} for split in ("train", "held_out")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for override in ("data.prompts=mine.jsonl", " data . prompts = 'mine.jsonl'"):
        demo = demo_of(tmp_path, RunOptions(overrides=(override,)))
        assert demo._spec.data.prompts == str(tmp_path / "mine.jsonl")
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"/mine\.jsonl: no such prompt file"):
        demo_of(tmp_path, RunOptions(overrides=("data.prompts=mine.jsonl",)))
