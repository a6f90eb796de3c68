"""What the demo makes of its run file and command line, before anything is started."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.demo import drive, ready
from orchestrator.demo.options import DemoSpec
from orchestrator.iterate.drive import RUN_FILE as ROUNDS_FILE
from orchestrator.iterate.options import IterateRun
from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.progress import LiveView
from services.common.errors import UserError
from services.common.spec.load import load_toml


def demo_of(folder: Path, options: RunOptions) -> drive._Demo:
    spec, view = options.load_spec(drive.RUN_FILE), LiveView(Console(file=io.StringIO()))
    return drive._Demo(RunLayout(folder), spec, DemoSpec(), drive.RUN_FILE, options, view)


@pytest.mark.parametrize(
    ("options", "layers", "frozen"),
    [
        (RunOptions(), 30, 15),
        (RunOptions(model="m"), 12, 6),
        (RunOptions(overrides=("model.path=m",)), 25, 12),
        (RunOptions(model="m", overrides=("optimiser.frozen_layers=3",)), 12, 3),
        (RunOptions(model="m", overrides=("optimiser.frozen_layers=0",)), 12, 0),
    ],
)
async def test_of_another_model_the_lower_half_is_frozen(
    options: RunOptions, layers: int, frozen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many layers as demo and rounds freeze of their own are too many for a small model; what is said is taken."""

    async def as_it_is(model: str) -> str:
        return model

    async def found(_model: str) -> int:
        return layers

    monkeypatch.setattr(drive, "make_ready", as_it_is)
    monkeypatch.setattr(ready, "make_ready", as_it_is)
    monkeypatch.setattr(ready, "layers_of", found)
    demo = demo_of(tmp_path, options)
    await demo._set_up()
    assert demo._spec.optimiser.frozen_layers == frozen
    rounds = load_toml(ROUNDS_FILE, IterateRun, options.all_overrides()).run()
    fitted = await ready.fitted(rounds, halved=ready.is_halved(options))
    assert fitted.optimiser.frozen_layers == frozen
    with pytest.raises(UserError, match=r"frozen_layers = 40, but .* has"):
        much = load_toml(ROUNDS_FILE, IterateRun, ["optimiser.frozen_layers=40"])
        await ready.fitted(much.run(), halved=False)


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
